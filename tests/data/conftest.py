"""Fixtures that the tests of vologan_fast.data share."""

import subprocess
from pathlib import Path

import pytest
from color_files import EncodeJpeg
from datasets import MakeDataset, picture, surface, write_image, write_manifest
from native_build import compile_with
from PIL import Image


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Return make_dataset(synthetic=7, real=4, height=64, width=64), which writes images and returns their folder."""

    def make(synthetic: int = 7, real: int = 4, height: int = 64, width: int = 64, name: str = "set") -> Path:
        items: dict[str, list[dict[str, str]]] = {}
        for seed, (domain, count) in enumerate([("synthetic", synthetic), ("real", real)]):
            items[domain] = [
                write_image(
                    tmp_path / name / domain,
                    f"{i:03}",
                    picture(1000 * seed + i, height, width),
                    surface(1000 * seed + i, height, width),
                )
                for i in range(count)
            ]
        write_manifest(tmp_path / name, items)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def encode_jpeg(tmp_path_factory: pytest.TempPathFactory) -> EncodeJpeg:
    """Compile jpeg_encoder.cpp and return the function that `EncodeJpeg` describes."""
    program = tmp_path_factory.mktemp("encoder") / "encoder"
    compile_with("-o", program, Path(__file__).with_name("jpeg_encoder.cpp"), "-ljpeg")

    def encode(
        image: Image.Image, source: str, kind: str, flags: str = "J", restart: int = 0, factors: str = ""
    ) -> bytes:
        arguments = [*map(str, image.size), source, kind, flags, str(restart), *factors]
        return subprocess.run([program, *arguments], input=image.tobytes(), capture_output=True, check=True).stdout

    return encode
