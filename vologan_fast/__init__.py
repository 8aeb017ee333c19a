"""Fast training of image-to-image GANs on high-resolution RGB-D."""
