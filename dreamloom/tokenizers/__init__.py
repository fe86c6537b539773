"""Frames to discrete codes and back."""
