"""Fast training of image-to-image GANs on high-resolution RGB-D.

    model = vologan_fast.load("runs/first")                             # a trained generator
    color, depth = vologan_fast.translate_image(model, color, depth)    # NumPy arrays, depth in file units

Importing this package imports nothing else. Its functions import what they need when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vologan_fast.translation.images import translate_image
    from vologan_fast.translation.translator import Translator, load

__all__ = ["Translator", "load", "translate_image"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    places = {"Translator": "translator", "load": "translator", "translate_image": "images"}
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.translation.{places[name]}"), name)
