"""The files that the image fuzzer begins from: sound, and read natively. A file that is refused would test nothing."""

from __future__ import annotations

import image_fuzz_corpus
import numpy as np
import pytest

from vologan_fast import depth
from vologan_fast.data.loaders import native


@pytest.mark.skipif(native._image_loader is None, reason="there is no native loader")
def test_all_are_read_natively_beside_the_depth() -> None:
    module = native._image_loader
    sides = {"small": (1, 1)}
    for name, content in image_fuzz_corpus.jpegs():
        found = module.decode_jpeg(content)
        if name == "cmyk.jpg":  # left to Pillow
            assert found is None
        else:
            assert found.shape == (*sides.get(name.partition(".")[0], (32, 40)), 3), name
    assert depth.decode(image_fuzz_corpus.depth()).shape == (32, 40)


def test_equal_files_every_time() -> None:
    assert dict(image_fuzz_corpus.jpegs()) == dict(image_fuzz_corpus.jpegs())
    values = np.nan_to_num(depth.decode(image_fuzz_corpus.depth()), nan=5)
    assert set(np.unique(values)) == {np.float32(v) for v in (-1, 0.2, 0.7, 5)}
