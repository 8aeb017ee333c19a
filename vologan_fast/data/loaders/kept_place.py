"""The choice of the place for kept images, by the memory that is free there."""

from __future__ import annotations

from vologan_fast.config import ConfigError
from vologan_fast.words import in_words

HOST_SHARE, DEVICE_SHARE = 1 / 2, 1 / 4
"""The fractions of free memory that `auto` may use. The rest is for training, which has not begun yet."""


def choose_place(wanted: str, needed: int, host: int, device: int | None, processes: int = 1) -> tuple[str, str]:
    """Choose the place for images of `needed` bytes. `wanted` is the value of `data.cache`: "auto", "device" or "host".

    Returns (place, reason). The place is "device", "host" or "none". `host` and `device` are free bytes. `device` is
    None without a GPU. Each of the `processes` on this machine keeps all images. Raises ConfigError if the images do
    not fit into the wanted place.
    """
    size = f"{in_words(needed)} of images"
    host //= processes
    free = f"the {in_words(host)} of free memory" + (" that each process may use" if processes > 1 else "")
    on_gpu = f"the {in_words(device or 0)} of free GPU memory"
    if wanted == "auto":
        if device is not None and needed <= device * DEVICE_SHARE:
            return "device", f"auto: fits into a quarter of {on_gpu}"
        if needed <= host * HOST_SHARE:
            return "host", f"auto: fits into half of {free}"
        return "none", f"not kept decoded; auto: {size} do not fit into half of {free}; --data.cache disk may help"
    if wanted == "device" and device is None:
        raise ConfigError("--data.cache is device: expected a GPU to train on, or host, disk, none")
    if wanted == "device" and needed > (device or 0):
        raise ConfigError(f"--data.cache is device: {size} do not fit into {on_gpu}; expected host, disk or none")
    if wanted == "host" and needed > host:
        raise ConfigError(f"--data.cache is host: {size} do not fit into {free}; expected disk or none")
    return wanted, "as asked for"
