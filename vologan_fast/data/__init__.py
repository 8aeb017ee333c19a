"""RGB-D data: from a folder of images to batches (N, C, H, W), channels_last float32 in [0, 1].

Read the modules in this order:

- `records`: one image, and the place of its bytes. `checksums`: what is known of the bytes in a folder.
- `manifest`: the list of the images in a folder. `shards/`: the images in shards, in a folder or in a bucket.
- `depth_spec`: the meaning of the depth values.
- `dataset`: both domains, split into training and held-out images.
- `sampling`: the order of the images and their augmentation.
- `pixels`: the definition of one RGB-D image from its two files.
- `loaders/`: the sources of batches. `loader`: the choice among them.
- `augmentation`: changes of whole batches.

The other modules make or check data sets. `demo/` renders images. `convert/` reads recordings from other sources.
`pack` makes shards. `inspection` finds images that look wrong. Importing this package does not import DALI.
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
