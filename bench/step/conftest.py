"""Make the modules of bench/static_cost importable: today's networks, and the count of activations."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "static_cost"))
