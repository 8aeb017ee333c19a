"""JPEGs that Pillow refuses and the native loader took: it decoded them with the tables of the file before.

libjpeg keeps tables for files that have none of their own. So the colours of such a file depended on the file that a
thread had read before. Now nothing is kept. Each kind here is refused by both, or read by both with the same bits.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from color_files import saved, textured
from PIL import Image

from vologan_fast.data import DataError
from vologan_fast.data.loaders import native
from vologan_fast.data.pixels import read_color

S = 40
pytestmark = [
    pytest.mark.skipif(native._image_loader is None, reason="there is no native loader"),
    pytest.mark.filterwarnings("ignore"),  # Pillow warns of broken EXIF
]


def segments(file: bytes) -> list[tuple[int, int, int]]:
    """Return begin, end and marker of each segment up to the first scan."""
    found, at = [], 2
    while file[at] == 0xFF:
        end = at + 2 + int.from_bytes(file[at + 2 : at + 4], "big")
        found.append((at, end, file[at + 1]))
        if file[at + 1] == 0xDA:
            break
        at = end
    return found


def without(file: bytes, marker: int) -> bytes:
    """Return the file without its segments of a marker."""
    for begin, end, found in reversed(segments(file)):
        if found == marker:
            file = file[:begin] + file[end:]
    return file


def with_another_table(file: bytes) -> bytes:
    """Return the file with its last quantisation table under a number that no colour plane uses."""
    begin = next(begin for begin, _, marker in reversed(segments(file)) if marker == 0xDB)
    return file[: begin + 4] + bytes([3]) + file[begin + 5 :]


IMAGE = textured(1, S, S)
PLAIN = saved(IMAGE, "JPEG", quality=95)
KINDS = {
    "no quantisation tables": without(PLAIN, 0xDB),
    "a plane without its quantisation table": with_another_table(PLAIN),
    "progressive, no Huffman tables": without(saved(IMAGE, "JPEG", progressive=True), 0xC4),
    "progressive, no quantisation tables": without(saved(IMAGE, "JPEG", progressive=True), 0xDB),
}


def by_native(file: bytes, path: Path) -> list[np.ndarray | None]:
    """Return what the native loader reads, alone and in a batch, each after a file with other tables."""
    module = native._image_loader
    before = saved(textured(2, S, S), "JPEG", quality=30)
    assert module.decode_jpeg(before) is not None
    found = [module.decode_jpeg(file)]
    loader = module.ImageLoader((S, S), "", 1, 0, float("nan"), float("nan"), [])
    out = np.zeros((2, S, S, 3), np.uint8)
    missed = loader.load_colors([before, file], out)
    return [*found, None if 1 in missed else out[1]]


def agree(file: bytes, path: Path) -> bool:
    """Check that the native loader reads nothing else than Pillow. Returns whether Pillow reads the file."""
    path.write_bytes(file)
    try:
        plain = read_color(path)
    except DataError:
        assert by_native(file, path) == [None, None]
        return False
    if plain.shape == (S, S, 3):
        assert all(found is None or np.array_equal(found, plain) for found in by_native(file, path))
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_another_file_are_never_used(kind: str, tmp_path: Path) -> None:
    assert not agree(KINDS[kind], tmp_path / "a.jpg")


def test_the_standard_huffman_tables_may_be_left_out(tmp_path: Path) -> None:
    """Frames of Motion JPEG leave them out. Both decoders know them, and read the same pixels."""
    assert agree(without(PLAIN, 0xC4), tmp_path / "a.jpg")
    assert by_native(without(PLAIN, 0xC4), tmp_path / "a.jpg")[0] is not None


def mutations(seed: int, count: int) -> Iterator[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 3
    bases = [
        PLAIN,
        saved(IMAGE, "JPEG", progressive=True),
        saved(IMAGE, "JPEG", exif=exif, comment=b"x" * 20),
        saved(IMAGE, "JPEG", restart_marker_blocks=2),
        saved(IMAGE, "MPO", save_all=True, append_images=[IMAGE]),
        saved(IMAGE.convert("L"), "JPEG"),
    ]
    rng = random.Random(seed)
    for _ in range(count):
        file = bytearray(rng.choice(bases))
        begin, end, marker = rng.choice(segments(bytes(file)))
        kind = rng.randrange(4)
        if kind < 2:
            for _ in range(rng.randint(1, 2)):
                file[rng.randrange(begin, min(end, begin + 60))] = rng.randrange(256)
        elif kind == 2 and marker != 0xDA:
            del file[begin:end]
        else:
            other, last, _ = rng.choice(segments(bytes(file)))
            file[begin:begin] = file[other:last]
        yield bytes(file)


@pytest.mark.parametrize("count", [1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_mutated_headers_are_read_alike_or_refused_by_both(tmp_path: Path, count: int) -> None:
    read = sum(agree(file, tmp_path / "a.jpg") for file in mutations(count, count))
    assert count / 10 < read < count
