"""Names and texts of others, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, or not show, as its escape: `\\x1b`, `\\u202e`.

    Bytes of a file name that are no UTF-8 are shown as `\\xff`.
    """
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's surrogate of one byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii") if code < 0xD800 or code > 0xDFFF else f"\\u{code:04x}"
