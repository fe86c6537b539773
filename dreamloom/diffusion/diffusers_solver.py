"""Hugging Face diffusers' schedulers as solvers, for those who want theirs (the extra `replay`)."""

from typing import Any, Literal

from torch import Tensor

from dreamloom.diffusion.preconditioning import precondition
from dreamloom.diffusion.solvers import Denoise, Noise, Solver


class DiffusersSolver(Solver):
    """A scheduler of diffusers in EDM's formulation: deterministic ones, since these alone leave a row's noise to the row.

    Args:
        scheduler: its class.
        steps: network calls.
        sigma_min: last noise level before 0.
        sigma_max: first noise level.
        rho: curvature of the schedule.
        order: of the multistep solver; Euler's is 1.
    """

    def __init__(
        self,
        scheduler: Literal["EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"] = "EDMDPMSolverMultistepScheduler",
        steps: int = 32,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        order: Literal[1, 2, 3] = 2,
    ):
        super().__init__(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        self.settings = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho, "sigma_data": 1.0}
        self.scheduler, self.order = scheduler, order

    def __call__(self, denoise: Denoise, noise: Noise) -> Tensor:
        scheduler = self._scheduler()
        scheduler.set_timesteps(self.steps)
        x = self.sigmas[0] * noise(0)
        for i, timestep in enumerate(scheduler.timesteps):
            sigma = x.new_tensor(float(scheduler.sigmas[i]))
            # A scheduler wants what the network says, F of Karras et al.'s equation 7, and works D out of it.
            c_skip, c_out, _, _ = precondition(sigma, 1.0)
            output = (denoise(x, sigma) - c_skip * x) / c_out
            scheduler.is_scale_input_called = True  # the denoiser scales for itself
            x = scheduler.step(output, timestep, x).prev_sample
        return x

    def _scheduler(self) -> Any:
        import diffusers

        if self.scheduler == "EDMEulerScheduler":
            return diffusers.EDMEulerScheduler(**self.settings)
        return diffusers.EDMDPMSolverMultistepScheduler(**self.settings, solver_order=self.order)
