"""Worlds that paint on a canvas: where the camera moves is predicted first, what is already on the canvas stays as it is."""
