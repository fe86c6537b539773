"""Shared blocks. Axis legend of the repo: b batch, t time, c h w image, n tokens of a frame, d width, a action, k codebook."""
