"""Text from users, such as names of files, as people may read it anywhere."""

from __future__ import annotations


def visible(text: object) -> str:
    """Return a text in which each character can be seen. Others, such as terminal escapes, are written as \\x1b.

    Bytes of names that are no UTF-8 (surrogates) are written as \\udc80, so the result can always be encoded.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))
