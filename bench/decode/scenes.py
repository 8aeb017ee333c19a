"""A scene for the decode benchmarks."""

import numpy as np

SIZE = 512


def person() -> np.ndarray:
    """Return float32 depth (SIZE, SIZE) in [-1, 1]: an ellipsoid with soft folds in front of the background −1."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    radius = ((x - 0.5) / 0.22) ** 2 + ((y - 0.52) / 0.32) ** 2
    surface = -0.3 + 0.35 * np.sqrt(np.maximum(0, 1 - radius)) + 0.02 * np.sin(20 * x + 3 * np.sin(9 * y))
    return np.where(radius < 1, surface, np.float32(-1)).astype(np.float32)
