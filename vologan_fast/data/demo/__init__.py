"""The demo data set: rendered people, and other people as a phone would show them.

The modules, from the bottom up: `figure` makes a person's surface. `material` gives it colours. `scene` renders it with
light and depth. `phone` adds the faults of a sensor. `dataset` writes the files.
"""

from vologan_fast.data.demo.dataset import FORMAT, make_demo

__all__ = ["FORMAT", "make_demo"]
