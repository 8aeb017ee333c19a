"""What a probe has found about one part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["works", "off", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    group: str
    """The heading that the line stands under."""
    name: str
    state: State
    """`works`: it works, or it is a fact. `off`: it is not used here, and nothing is wrong. `broken`: something is."""
    found: str
    """What was found, and if it is off or broken, why."""
    advice: str = ""
    """What to do if you want it. Empty if there is nothing to do."""
    needed: bool = False
    """Whether training cannot run without it."""

    @property
    def prevents_training(self) -> bool:
        return self.needed and self.state != "works"
