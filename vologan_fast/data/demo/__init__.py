"""The demo data set: rendered people, and other people as a phone would have seen them.

From the bottom up: `figure` draws a person's surface, `material` gives it colours, `scene` renders it with light and
depth, `phone` adds a sensor's faults, `dataset` writes the files.
"""

from vologan_fast.data.demo.dataset import FORMAT, make_demo

__all__ = ["FORMAT", "make_demo"]
