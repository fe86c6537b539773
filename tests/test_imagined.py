"""Worlds as environments: Gymnasium's own checkers, seeds, autoreset, starts, and a learner from elsewhere that learns."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from test_genie import genie
from toy_game import ToyWorld
from walk_world import SIDE, WalkWorld, drawn

import dreamloom
from dreamloom.worldmodels.bundle import save_bundle
from dreamloom.worldmodels.imagined import ImaginedEnv, ImaginedVectorEnv
from dreamloom.worldmodels.starts import DataStarts
from dreamloom.worldmodels.world import replace_states, select_states, split_state, stack_states

assert dreamloom  # makes the ids known


def write_walks(path: Path, *, fps: float = 15.0, lengths: tuple[int, ...] = (8, 6, 3)) -> Path:
    """Episodes of a square that walks right from place 0, frame by frame; the first and the last are rewarded at their end."""
    places = np.concatenate([np.arange(length) % SIDE for length in lengths])
    ends = np.zeros(len(places), bool)
    ends[np.cumsum(lengths) - 1] = True
    rewards = np.zeros(len(places), np.float32)
    rewards[[np.cumsum(lengths)[0] - 1, -1]] = 1
    with h5py.File(path, "w") as file:
        file["observations"] = drawn(torch.from_numpy(places)).permute(0, 2, 3, 1).numpy()
        file["actions"], file["rewards"] = np.ones(len(places), np.int64), rewards
        file["terminals"], file["timeouts"] = ends, np.zeros(len(places), bool)
        file.attrs.update(format="dreamloom", format_version=1, fps=fps)
    return path


def places(frames: np.ndarray) -> list[int]:
    """Where the square is in each frame (n, h, w, c)."""
    return frames[:, 0, :, 0].argmax(-1).tolist()


@pytest.mark.parametrize("continuous", [False, True])
def test_gymnasium_finds_no_fault(continuous: bool) -> None:
    env = gymnasium.make("dreamloom/World-v0", world=WalkWorld(continuous=continuous), horizon=5, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=False)
    frame, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), frame)


def test_ids_are_known_whatever_is_imported_first(tmp_path: Path) -> None:
    save_bundle(genie(prompts=torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)), tmp_path / "world")
    make = f"gymnasium.make_vec('dreamloom/World-v0', num_envs=3, world={str(tmp_path / 'world')!r}, horizon=2)"
    for order in ("dreamloom, gymnasium", "gymnasium, dreamloom"):
        code = f"import {order}, sys; assert 'torch' not in sys.modules; gymnasium.spec('dreamloom/World-v0')"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=500)
    code = f"import gymnasium\nenv = {make}\nprint(env.reset(seed=0)[0].shape)".replace("'dream", "'dreamloom:dream", 1)
    told = subprocess.run([sys.executable, "-c", code], check=True, timeout=500, capture_output=True, text=True).stdout
    assert told == "(3, 8, 8, 3)\n"


def test_copies_are_what_they_are_alone() -> None:
    """Copy i of seed s is the only copy of seed s + i, over several rollouts; the same seed gives the same again."""
    world = genie(prompts=torch.randint(256, (3, 2, 3, 8, 8), dtype=torch.uint8))
    actions = np.random.default_rng(0).integers(3, size=(7, 3))

    def rolled(env: ImaginedVectorEnv, seed: int, actions: np.ndarray) -> list[np.ndarray]:
        frames = [env.reset(seed=seed)[0]]
        return [*frames, *(env.step(action)[0] for action in actions)]

    together = ImaginedVectorEnv(3, world=world, horizon=3)
    seen = rolled(together, 5, actions)
    assert all(np.array_equal(a, b) for a, b in zip(seen, rolled(together, 5, actions), strict=True))
    for i in range(3):
        alone = rolled(ImaginedVectorEnv(1, world=world, horizon=3), 5 + i, actions[:, i : i + 1])
        for one, every in zip(alone, seen, strict=True):
            assert np.abs(one[0].astype(int) - every[i]).max() <= 1


def test_rollouts_begin_anew_at_the_next_step() -> None:
    env = ImaginedVectorEnv(2, world=WalkWorld(slips=0.0), horizon=5)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.reset(seed=0)
    env.state = env.world.reset(drawn(torch.tensor([5, 0]))[:, None])
    told = [env.step(np.array([1, 1])) for _ in range(7)]
    frames, rewards, terminated, truncated = (np.stack([step[i] for step in told]) for i in range(4))
    assert terminated[:3, 0].tolist() == [False, True, False]
    assert (rewards[1, 0], places(frames[1])[0]) == (1.0, 7)
    assert places(frames[2])[0] < 4, "the step after the end starts anew and takes no action"
    assert (rewards[2, 0], terminated[2, 0]) == (0.0, False)
    assert truncated[:, 1].tolist() == [False, False, False, False, True, False, False]
    assert not terminated[:6, 1].any()


def test_rollouts_begin_anew_at_once_and_tell_their_last_frame() -> None:
    env = gymnasium.make_vec(
        "dreamloom/World-v0", num_envs=2, world=WalkWorld(slips=0.0), horizon=2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    env.reset(seed=0)
    before = env.unwrapped.state.place.numpy()
    env.step(np.array([1, 0]))
    frames, _, _, truncated, infos = env.step(np.array([1, 0]))
    assert truncated.all()
    assert infos["_final_obs"].all()
    assert places(np.stack(infos["final_obs"])) == np.clip(before + np.array([2, -2]), 0, SIDE - 1).tolist()
    assert places(frames) == env.unwrapped.state.place.tolist()


def test_without_autoreset_the_mask_says_which_begin_anew() -> None:
    env = ImaginedVectorEnv(2, world=WalkWorld(slips=0.0), horizon=2, autoreset_mode="Disabled")
    env.reset(seed=0)
    env.state = env.world.reset(drawn(torch.tensor([6, 3]))[:, None])
    env.step(np.array([1, 1]))
    with pytest.raises(ValueError, match=r"environments \[0\] have ended"):
        env.step(np.array([1, 1]))
    env.reset(options={"reset_mask": np.array([True, False])})
    frames, *_ = env.step(np.array([1, 1]))
    assert places(frames)[1] == 5


def test_uncertainty_is_told_and_penalised() -> None:
    world = genie(prompts=torch.randint(256, (3, 2, 3, 8, 8), dtype=torch.uint8))
    plain, penalised = (ImaginedVectorEnv(4, world=world, horizon=2, penalty=penalty) for penalty in (0.0, 0.5))
    for env in (plain, penalised):
        _, infos = env.reset(seed=1)
        assert "uncertainty" not in infos
    _, rewards, terminated, _, infos = plain.step(np.zeros(4, int))
    assert infos["uncertainty"].dtype == np.float32
    assert (infos["uncertainty"] > 0).all()
    assert (infos["uncertainty"] <= np.log(25)).all()
    assert not rewards.any()
    assert not terminated.any()
    np.testing.assert_allclose(penalised.step(np.zeros(4, int))[1], -0.5 * infos["uncertainty"], rtol=1e-6)
    plain.step(np.zeros(4, int))
    infos = plain.step(np.zeros(4, int))[4]
    assert not infos, "all four rest, and nothing was imagined"
    silent = ImaginedVectorEnv(1, world=WalkWorld(), penalty=1.0)
    silent.reset(seed=0)
    with pytest.raises(ValueError, match="does not tell how unsure"):
        silent.step(np.array([0]))


def test_starts_are_windows_of_the_data(tmp_path: Path) -> None:
    data, world = write_walks(tmp_path / "walks.hdf5"), WalkWorld()
    generators = [torch.Generator().manual_seed(i) for i in range(400)]

    def rows(at: Any, **settings: Any) -> set[int]:
        starts = DataStarts(data, world, at=at, length=2)
        starts.progress = settings.get("progress", 0.0)
        return set(starts.rows(generators).tolist())

    assert rows("uniform") == {*range(6), *range(8, 12), 14}, "a window of two, and one more frame of the episode"
    assert rows("first") == {0, 8, 14}
    assert rows("backward") == {5, 14}, "the last windows of the rewarded episodes"
    assert rows("backward", progress=1.0) == {*range(6), 14}
    starts = DataStarts(data, world, length=2)
    frames = starts.frames(np.array([3, 9]))
    assert frames.shape == (2, 2, 3, SIDE, SIDE)
    assert places(frames[:, -1].permute(0, 2, 3, 1).numpy()) == [4, 2]
    ahead = starts.ahead(3, 9)
    assert places(ahead.frames.permute(0, 2, 3, 1).numpy()) == [4, 5, 6, 7]
    assert (ahead.actions.tolist(), len(starts.ahead(3, 2).frames)) == ([1, 1, 1], 3)


def test_starts_step_as_far_as_the_world(tmp_path: Path) -> None:
    starts = DataStarts(write_walks(tmp_path / "fast.hdf5", fps=30.0), WalkWorld(), at="first", length=2)
    frames = starts.draw([torch.Generator().manual_seed(1)])
    assert places(frames[0].permute(0, 2, 3, 1).numpy()) == [0, 2]
    assert places(starts.ahead(0, 2).frames.permute(0, 2, 3, 1).numpy()) == [2, 4, 6]


def test_a_curriculum_moves_back_as_steps_are_taken(tmp_path: Path) -> None:
    data = write_walks(tmp_path / "walks.hdf5", lengths=(8,))
    env = ImaginedVectorEnv(8, world=WalkWorld(), starts=data, start_at="backward", curriculum=160, horizon=1)
    env.reset(seed=0)
    first = env.state.place.tolist()
    for _ in range(40):
        env.step(np.ones(8, int))
    assert set(first) == {6}
    assert len(set(env.reset()[0][:, 0, :, 0].argmax(-1).tolist())) > 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"horizon": 0}, "must be at least 1"),
        ({"start_at": "first"}, "give `starts`"),
        ({"world": ToyWorld("perfect"), "starts": "walks"}, "a start needs 13 rows of one episode"),
        ({"starts": "fast"}, "the first must be a multiple"),
        ({"starts": "walks", "context": 9}, "and the longest has 8"),
    ],
)
def test_what_does_not_fit_is_told(settings: dict, said: str, tmp_path: Path) -> None:
    written = {"walks": write_walks(tmp_path / "w.hdf5"), "fast": write_walks(tmp_path / "f.hdf5", fps=20.0)}
    if "starts" in settings:
        settings = settings | {"starts": written[settings["starts"]]}
    if isinstance(settings.get("world"), ToyWorld):
        settings["context"] = 12
    with pytest.raises(ValueError, match=said):
        ImaginedVectorEnv(2, **{"world": WalkWorld()} | settings)


def test_wrong_use_is_told() -> None:
    env = ImaginedVectorEnv(2, world=WalkWorld())
    with pytest.raises(ValueError, match="reset the environment before"):
        env.step(np.array([0, 0]))
    env.reset()
    with pytest.raises(ValueError, match=r"actions of shape \(2,\), got \(3,\)"):
        env.step(np.array([0, 0, 0]))
    with pytest.raises(ValueError, match="of all environments"):
        ImaginedVectorEnv(2, world=WalkWorld()).reset(options={"reset_mask": np.array([True, False])})


def test_states_can_be_picked_and_replaced() -> None:
    world = genie()
    state = world.reset(torch.randint(256, (3, 2, 3, 8, 8), dtype=torch.uint8))
    parts = split_state(state)
    picked = select_states(state, torch.tensor([2, 0]))
    assert torch.equal(picked.dynamics.keys, stack_states([parts[2], parts[0]]).dynamics.keys)
    put = replace_states(state, torch.tensor([1]), select_states(state, torch.tensor([0])))
    assert torch.equal(put.decoder.values, stack_states([parts[0], parts[0], parts[2]]).decoder.values)


@pytest.mark.parametrize("batched", [False, True])
def test_ppo_learns_in_a_world(batched: bool) -> None:
    """Stable-Baselines3's PPO, in one environment as it is and in a batch: the walk to the right end takes 4 to 7 steps."""
    sb3 = pytest.importorskip("stable_baselines3")
    from dreamloom.worldmodels.sb3 import ImaginedVecEnv

    settings = {"world": WalkWorld(slips=0.0), "horizon": 12}
    env: Any = ImaginedVecEnv(8, **settings) if batched else ImaginedEnv(**settings)
    agent = sb3.PPO("MlpPolicy", env, n_steps=16 if batched else 128, batch_size=64, learning_rate=1e-2, seed=0, device="cpu")
    agent.learn(1024)
    judge = ImaginedVectorEnv(16, **settings)
    frames, _ = judge.reset(seed=9)
    earned = np.zeros(16)
    for _ in range(12):
        frames, rewards, *_ = judge.step(agent.predict(frames, deterministic=True)[0])
        earned += rewards
    assert (earned >= 1).all()


def test_the_bundled_world_is_the_default() -> None:
    env = gymnasium.make_vec("dreamloom/World-v0", num_envs=1)
    assert env.unwrapped.world.name == "coinrun"
    assert env.single_observation_space.shape == (128, 128, 3)
