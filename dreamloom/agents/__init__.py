"""Offline reinforcement learning: one algorithm a file, several seeds at once."""
