"""Bad images, and the images that take their places: `--data.on-error skip`.

A bad image is replaced by the next good one of its list, in the list's order. So the replacement depends on the files
alone: it is the same on resume, and for any number of processes. A file that cannot be read for a while only, such as
one on a stalled disk, is different: once an image was replaced in a step, it is replaced in all later ones, also in a
resumed run, which gets the record of the former run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vologan_fast.data.errors import DataError
from vologan_fast.data.records import Record


@dataclass(frozen=True)
class Skipped:
    """A bad image: one line of skipped.jsonl."""

    step: int
    """The first step that it was replaced in. Steps count from 1. 0: it was found before the first step."""
    split: str
    """"train" or "held_out"."""
    domain: str
    file: str
    """The image's first file, relative to the data set."""
    reason: str

    @property
    def sentence(self) -> str:
        return f"bad image, replaced by another: {self.reason}"


def described(found: Sequence[Skipped]) -> list[str]:
    """Return a line for each bad image, and one with their number. [] without bad images."""
    many = "image is" if len(found) == 1 else "images are"
    count = [f"{len(found)} {many} bad and replaced by others (--data.on-error skip)"] if found else []
    return [*(bad.sentence for bad in found), *count]


class Skipping:
    """The bad images of a data set that were found so far. All methods may be called from any thread."""

    def __init__(self, root: str, most: int) -> None:
        """`root` is the data set's folder or URL. More than `most` bad images are an error."""
        self._root = f"{root.rstrip('/')}/"
        self._most = most
        self._lock = threading.Lock()
        self._found: dict[str, Skipped] = {}

    def found(self) -> list[Skipped]:
        """Return all bad images, in the order of their steps and files."""
        with self._lock:
            return sorted(self._found.values(), key=lambda bad: (bad.step, bad.domain, bad.file))

    def restore(self, found: Iterable[Skipped]) -> None:
        """Add what a record says."""
        with self._lock:
            for bad in found:
                self._add(bad)

    def used(self, records: Sequence[Record], index: int, step: int) -> int:
        """Return the place of the image that is used instead of `records[index]`: `index`, or the next good one.

        `step` is the one in which it is used, counted from 1. Raises DataError if all images are bad.
        """
        if not self._found:
            return index
        for after in range(len(records)):
            place = (index + after) % len(records)
            bad = self._found.get(self._name(records[place]))
            if bad is None or step < bad.step:
                return place
        raise DataError(f"{self._root[:-1]}: all {len(records)} images of a list are bad; expected a good one")

    def skip(self, record: Record, split: str, domain: str, step: int, error: DataError) -> None:
        """Note that an image is bad from this step on. Raises DataError if there are more than the limit allows."""
        bad = Skipped(step, split, domain, self._name(record), str(error))
        with self._lock:
            self._add(bad)
            count = len(self._found)
        if count > self._most:
            raise DataError(f"{count} images are bad, more than --data.max-skipped {self._most}; the last one: {error}")

    def _add(self, bad: Skipped) -> None:
        known = self._found.get(bad.file)
        if known is None or bad.step < known.step:
            self._found[bad.file] = bad

    def _name(self, record: Record) -> str:
        return str(record.files[0]).removeprefix(self._root)
