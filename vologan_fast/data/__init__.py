"""RGB-D data: from a folder of images to batches (N, 4, S, S), channels_last float32 in [0, 1].

Read in this order: records (where bytes are), manifest (which files; or shards, which pack makes and s3 finds in a
bucket), depth_spec (what their depth means), sampling (which image when), pixels (what one image becomes), then who
does it, behind loader: dali_loader or torch_loader from files, resident from memory.
docs/data-formats.md and docs/loading.md are the user's view. Importing this imports no DALI.
"""

from vologan_fast.data.errors import DataError
from vologan_fast.data.loader import Dataset, RGBDLoader, absolute, held_out_batches, load_dataset, open_loader
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
