"""Diffusion over transitions: preconditioning, noise, solvers, denoisers, and the upsampler that they make."""
