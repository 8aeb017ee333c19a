"""RGB-D data: from a folder of images to batches (N, 4, S, S), channels_last float32 in [0, 1].

Read in this order:

- `records`: where the bytes of an image are; `manifest`: which images a folder holds, or `shards/` a bucket;
- `depth_spec`: what their depth means; `dataset`: both domains, split into training and held-out images;
- `sampling`: which image is used when; `pixels`: what one image becomes;
- `loaders/`: the sources of batches; `loader`: the choice among them.

Beside them, `demo/` renders images, `convert/` reads other people's recordings, `pack` makes shards, and `inspection`
finds what looks wrong. Importing this package does not import DALI.
"""

from vologan_fast.data.dataset import Dataset, absolute, load_dataset
from vologan_fast.data.errors import DataError
from vologan_fast.data.loader import RGBDLoader, held_out_batches, open_loader
from vologan_fast.data.records import Record

__all__ = [
    "DataError",
    "Dataset",
    "RGBDLoader",
    "Record",
    "absolute",
    "held_out_batches",
    "load_dataset",
    "open_loader",
]
