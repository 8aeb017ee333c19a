"""The networks that others train today, and the count of activations, are those of bench/static_cost."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "static_cost"))
