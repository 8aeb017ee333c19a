"""Fast training of image-to-image GANs on high-resolution RGB-D.

    model = vologan_fast.load("runs/first")                             # a trained generator
    color, depth = vologan_fast.translate_image(model, color, depth)    # NumPy arrays, depth in file units; or None

Importing this package imports nothing else. Its functions are imported when they are first used. If Python is starting
one of its commands, signals end the process with a sentence from now on, as the next imports take seconds.
"""

import sys
from typing import Any

if sys.argv[:1] == ["-m"] and any(argument.startswith("vologan_fast.") for argument in sys.orig_argv):
    from vologan_fast import stopping

    stopping.begin()

_PLACES = {
    "Translator": "translator",
    "load": "translator",
    "load_foreign": "foreign",
    "translate_image": "images",
}

__all__ = ["Translator", "load", "load_foreign", "translate_image"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.translation.{_PLACES[name]}"), name)
