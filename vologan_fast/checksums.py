"""Checksums of a folder's files, and records that hold their own checksum, so that damage is noticed before use.

    checksums.json    {"step": 1200, "files": {"state.pt": {"bytes": 731, "crc32": "0a1b2c3d"}, …}, "crc32": …}

Checkpoints, model folders and data sets have such a file. Only a checkpoint, and a model of one, has a step. A record
such as config.json, which people may change, holds its own checksum (`signed`). Who changes it on purpose removes the
entry "crc32". So does each line of a log (`signed_line`): a log grows, and its lines are read while it does.

A CRC-32 notices each change of up to 32 bits in a row, and all but one in 4·10⁹ of the others. It is made for faults of
disks and memory, not against people who want to deceive. Folders of former versions have no such file.

Editors and copying programs change the ends of lines, and put a byte order mark in front of a text. To readers, that
is no change of a record (`as_written`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from vologan_fast.files import crc32, open_regular

CHECKSUMS = "checksums.json"
_OWN = "crc32"
_MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark
_PIECE = 1 << 20  # bytes that are read at once

Entries = dict[str, dict[str, Any]]
"""Size and CRC-32 of each file, by its name: {"bytes": 731, "crc32": "0a1b2c3d"}."""


class ChangedError(ValueError):
    """A record is not what its checksum says. The message is the part of a sentence that follows its name."""


def entry(size: int, crc: int) -> dict[str, Any]:
    """Return the entry of a file in `Entries`."""
    return {"bytes": size, "crc32": f"{crc:08x}"}


def entry_of(data: bytes) -> dict[str, Any]:
    """Return the entry of a file with this content."""
    return entry(len(data), crc32(data))


def entry_of_file(path: Path) -> dict[str, Any]:
    """Return the entry of a file, which is read in pieces. Raises OSError."""
    size = crc = 0
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            size, crc = size + len(piece), crc32(piece, crc)
    return entry(size, crc)


def checksums(step: int | None, files: Entries) -> bytes:
    """Return the content of a checksums.json. Only checkpoints, and models of one, have a step."""
    return signed({"step": step, "files": files}, indent=1)  # so that its own damage is not taken for that of another


def parse_checksums(text: bytes) -> tuple[int | None, Entries]:
    """Return the step and the entries of a checksums.json.

    Raises ChangedError for a text that is not, except for the ends of its lines, as `checksums` makes it.
    """
    try:
        record = json.loads(text)
        step, files = record["step"], record["files"]
        whole = as_written(text) == checksums(step, files) and all(
            type(found["bytes"]) is int and type(found["crc32"]) is str for found in files.values()
        )
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):  # damage makes any JSON, or none
        whole = False
    if not whole:
        raise ChangedError("damaged (not as it was written)")
    return step, files


def as_written(text: bytes) -> bytes:
    """Return a text, or one line, with the ends of lines that we write: a newline alone, also at the very end.

    A byte order mark in front is left out. No byte of a record is taken away: JSON has no newlines inside of its
    strings, so what comes right before a newline is no part of them.
    """
    text = text.removeprefix(_MARK).replace(b"\r\n", b"\n")
    return text.removesuffix(b"\n").removesuffix(b"\r") + b"\n"


def signed(record: dict[str, Any], indent: int) -> bytes:
    """Return a record as JSON with its checksum as the last entry, "crc32"."""
    own = f"{crc32(json.dumps(record).encode()):08x}"
    return json.dumps({**record, _OWN: own}, indent=indent).encode() + b"\n"


def unsigned(text: bytes, indent: int) -> Any:
    """Return the record of which `signed` made the text, without its checksum. Without a checksum, any JSON will do.

    The ends of lines may be others. Raises ChangedError for another text than `signed` has made, and ValueError or
    RecursionError for what is no JSON.
    """
    record = json.loads(text)
    if isinstance(record, dict) and record.pop(_OWN, None) is not None and as_written(text) != signed(record, indent):
        raise ChangedError(
            "damaged, or changed: its checksum is of another content; if you changed it on purpose, remove its last "
            f'entry, "{_OWN}"'
        )
    return record


def signed_line(record: dict[str, Any]) -> bytes:
    """Return a record as `signed` does, in one line."""
    return _signed_text(json.dumps(record).encode())


def unsigned_line(line: bytes) -> Any:
    """Do what `unsigned` does, for a line of `signed_line`.

    Logs have thousands of lines, so a line is compared as it is. Its record is not written again.
    """
    record = json.loads(line)
    if isinstance(record, dict) and _OWN in record:
        del record[_OWN]
        line = as_written(line)
        if line != _signed_text(line[:-_END] + b"}"):
            raise ChangedError("damaged, or changed: its checksum is of another content")
    return record


def end_last_line(log: BinaryIO, last: bytes) -> bool:
    """Let a log end with a whole line, so that others can follow. Return whether its last line is one.

    `log` is open for appending, and `last` is the line. If a kill has cut it off, it is removed. If only its newline is
    missing, as after some editors, it gets one. Raises OSError.
    """
    if last.endswith(b"\n"):
        return True
    try:
        whole = isinstance(unsigned_line(last), dict)  # no beginning of an object is an object
    except (ValueError, RecursionError):
        whole = False
    if whole:
        log.write(b"\n")
    else:
        log.truncate(log.seek(0, os.SEEK_END) - len(last))
    return whole


def _signed_text(text: bytes) -> bytes:
    """Return the line of an object that JSON writes as this text, with its checksum."""
    return text[:-1] + f', "{_OWN}": "{crc32(text):08x}"}}\n'.encode()


_END = len(_signed_text(b"{}")) - 1
"""Bytes that a checksum adds to an object's text, and the bracket after them."""
