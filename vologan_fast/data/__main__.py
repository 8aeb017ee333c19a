"""`python -m vologan_fast.data COMMAND`: make data sets.

demo: render the demo data set.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from vologan_fast.data.demo import make_demo
from vologan_fast.data.errors import DataError

app = tyro.extras.SubcommandApp()


@app.command
def demo(
    directory: Annotated[Path, tyro.conf.Positional],
    count: int = 256,
    size: int = 64,
    paired_test: int = 0,
    seed: int = 0,
) -> None:
    """Render people as a clean domain, and other people seen by a simulated phone LiDAR as the other domain.

    Args:
        directory: Folder to make; one that holds this very demo already is left as it is.
        count: Images per domain.
        size: Side of the square images in pixels, a multiple of 8.
        paired_test: Also this many scenes both rendered and photographed, for scoring.
        seed: Equal seeds give equal files.
    """
    print(make_demo(directory, count, size, seed, paired_test))


def main() -> int:
    """Run the command line; a mistake of the user's is one line and exit code 2."""
    try:
        app.cli(prog="python -m vologan_fast.data", description="Make data sets.")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
