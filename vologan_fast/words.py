"""Words for people: sizes, and strings of strangers on one line of a terminal."""

from __future__ import annotations

import sys


def in_words(count: int) -> str:
    """Return a number of bytes in words, as "1.31 MB" or "5.37 GB"."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def printable(text: object) -> str:
    """Return a text on one line, in which escapes stand for what a terminal would not print, such as \\x1b.

    Bytes of names that are no UTF-8 (surrogates) become such as \\udc80, so the result can always be encoded.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def say(text: object) -> None:
    """Print one line. Names of strangers may be in it: what a terminal would obey is shown as `printable` shows it."""
    print(printable(text), flush=True)


def say_lines(text: str) -> None:
    """Print a text of several lines, each as `say` does."""
    for line in text.split("\n"):
        print(printable(line))
    sys.stdout.flush()


def say_error(text: object) -> None:
    """Do what `say` does, on the standard error output."""
    print(printable(text), file=sys.stderr, flush=True)


def in_a_sentence(error: BaseException, most: int = 300) -> str:
    """Return the first line of an error's message, at most `most` characters. Without a message: the error's type."""
    lines = str(error).strip().splitlines()
    text = printable(lines[0].strip()) if lines else type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"
