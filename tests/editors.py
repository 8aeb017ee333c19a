"""What editors and copying programs do to the ends of a text's lines, and to its beginning."""

from collections.abc import Callable

EDITED: dict[str, Callable[[bytes], bytes]] = {
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "BOM": lambda text: b"\xef\xbb\xbf" + text,
    "no last newline": lambda text: text[:-1],
    "all of it": lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")[:-1],
}
