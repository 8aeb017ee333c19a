"""Kernels for image-to-image GANs."""
