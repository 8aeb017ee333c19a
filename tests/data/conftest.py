"""Fixtures that the tests of vologan_fast.data share."""

from pathlib import Path

import pytest
from datasets import MakeDataset, picture, surface, write_image, write_manifest


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
