"""The report of `fuse`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The qualified name of a norm, and its new form or the reason why it was left."""

    name: str
    detail: str

    def __str__(self) -> str:
        return f"  {self.name or '(the model itself)'}: {self.detail}"


@dataclass(frozen=True)
class FusionReport:
    """The changes that `fuse` made to a model. `print` shows them.

    - `fused`: norms that are now one operation with what follows them.
    - `alone`: norms that became an `InstanceNormAct2d` without anything that follows, with the reason.
    - `left`: norms and modules that were not changed, with the reason.
    """

    fused: tuple[Finding, ...]
    alone: tuple[Finding, ...]
    left: tuple[Finding, ...]

    def __str__(self) -> str:
        parts = [
            ("Fused", self.fused),
            ("Replaced, but not fused with what follows", self.alone),
            ("Left as they were", self.left),
        ]
        lines = [line for title, found in parts if found for line in (f"{title} ({len(found)}):", *map(str, found))]
        return "\n".join(lines or ["No instance norm was found."])
