"""Names of files that were written on another system, and the files that they mean here.

A list of files may come from Windows, where backslashes separate folders and the case of letters does not matter. On
macOS, one letter may be stored as two characters. Programs that make URLs write %20 for a space. Names that differ only
in such ways are *alike*.

A name that exists as it is written always means that file. Otherwise it means the only file whose name is like it. If
several are, nothing is guessed: an error names them.
"""

from __future__ import annotations

import codecs
import fnmatch
import os
import re
import unicodedata
from pathlib import Path, PurePath
from urllib.parse import unquote

from vologan_fast.data.errors import DataError
from vologan_fast.files import absolute_path

_ADDED = {"__macosx", ".ds_store", ".trashes", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir"}
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def key(name: str) -> str:
    """Return a form of a file's name that is the same for all names that are alike."""
    return unicodedata.normalize("NFC", unquote(name)).casefold().strip()


def is_added_by_system(path: PurePath) -> bool:
    """Return whether the path is one that systems add to folders and archives: ._NAME, .DS_Store, __MACOSX, …"""
    return any(part.startswith("._") or part.lower() in _ADDED for part in path.parts)


def find_all(folder: Path, pattern: str) -> list[Path]:
    """Return what lies in the folder, at any depth, with a name that matches a pattern such as "*.r3d", in either case.

    The list is sorted. What systems add is left out.
    """
    found = []
    for parent, folders, files in os.walk(folder):  # many times as fast as Path.rglob
        folders[:] = [name for name in folders if not is_added_by_system(PurePath(name))]
        names = [name for name in (*folders, *files) if fnmatch.fnmatchcase(name.lower(), pattern.lower())]
        found += [Path(parent, name) for name in names if not is_added_by_system(PurePath(name))]
    return sorted(found)


def decoded(content: bytes) -> str:
    """Decode a text of UTF-8, or of UTF-16 with its mark, as PowerShell writes it. Raises UnicodeDecodeError."""
    return content.decode(_UTF_16.get(content[:2], "utf-8-sig"))


class Folder:
    """A folder, and the files in it that written names mean.

    It keeps what it has listed. So make a new one when files may have changed.
    """

    def __init__(self, root: Path) -> None:
        self.root = absolute_path(root)
        self.guessed: dict[Path, str] = {}
        """The files that were found although their names differ, each with the path that was written."""
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, written: str, where: str) -> Path:
        """Return the path of the file that a written name means. If there is none, return the path as it is written.

        Raises DataError, which begins with `where`, for a path that leaves the folder or belongs to another computer,
        for a name that is like several files, and for two different names that mean the same file.
        """
        path = self._inside(written, written, where)
        if os.path.lexists(path):
            return path
        if _WINDOWS.match(written):
            raise DataError(f"{where} is {written!r}, an absolute Windows path, with a drive or server; {_RELATIVE}")
        if _URL.match(written):
            raise DataError(f"{where} is {written!r}, a URL; {_RELATIVE}")
        if any(unicodedata.category(character) == "Cc" for character in written):
            raise DataError(
                f"{where} is {written!r}, with a control character: was it a backslash? JSON needs two of them, or a /"
            )
        name = written.replace("\\", "/")
        path = self._inside(unquote(name) if "%2f" in name.lower() else name, written, where)
        found = self.alike(path.relative_to(self.root), where)
        if found is None or found == path:
            return path
        meant = str(path.relative_to(self.root))
        if (other := self.guessed.setdefault(found, meant)) != meant:
            raise DataError(
                f"{where} is {written!r}, but {other!r} means the same file, {found}; expected one file each"
            )
        return found

    def _inside(self, name: str, written: str, where: str) -> Path:
        path = Path(os.path.normpath(self.root / name))
        if not path.is_relative_to(self.root):
            raise DataError(f"{where} is {written!r}, which points outside the folder; {_RELATIVE}")
        return path

    def alike(self, relative: PurePath, where: str) -> Path | None:
        """Return the only path in the folder that is like `relative`, or None if there is none.

        Raises DataError, which begins with `where`, if there are several.
        """
        path = self.root
        for part in relative.parts:
            same = self._list(path).get(key(part), [])
            if part not in same and len(same) > 1:
                raise DataError(
                    f"{where}: {path} has {' and '.join(map(repr, same))}, but no {part!r}; which one is it?"
                )
            if not same:
                return None
            path /= part if part in same else same[0]
        return path

    def _list(self, path: Path) -> dict[str, list[str]]:
        """Return the names in a folder by their key."""
        if path not in self._listed:
            listed: dict[str, list[str]] = {}
            try:
                for file in sorted(path.iterdir()):
                    listed.setdefault(key(file.name), []).append(file.name)
            except OSError:
                pass  # it is no folder, or it cannot be read; whoever reads the file says so
            self._listed[path] = listed
        return self._listed[path]


_RELATIVE = "expected a path relative to the folder"
