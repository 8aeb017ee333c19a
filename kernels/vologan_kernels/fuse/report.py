"""The report of `fuse`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The qualified name of a norm, and the operation that it is part of or the reason why it was left."""

    name: str
    detail: str

    def __str__(self) -> str:
        return f"  {self.name or '(the model itself)'}: {self.detail}"


@dataclass(frozen=True)
class FusionReport:
    """The changes that `fuse` made to a model. `print` shows them.

    - `fused`: norms that run as one operation with what follows them.
    - `left`: norms that run as before, with the reason.
    """

    fused: tuple[Finding, ...]
    left: tuple[Finding, ...]

    def __str__(self) -> str:
        parts = [("Fused", self.fused), ("Left as they were", self.left)]
        lines = [line for title, found in parts if found for line in (f"{title} ({len(found)}):", *map(str, found))]
        return "\n".join(lines or ["No instance norm was found."])
