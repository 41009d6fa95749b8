"""Texts from outside, such as names of files and classes, made fit to be shown."""

import unicodedata

_TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # what follows is written the other way
_MARKS = "\u061c\u200e\u200f"  # the same, for a place between two characters


def in_line(text: object, keep: str = "") -> str:
    """`text` in one line that does no more to a terminal than fill it: all else is written as Python writes it.

    That is control characters (of which escape sequences are made), line breaks, what changes the direction of writing,
    and bytes of file names that are no text. Characters of `keep` stay.
    """
    return "".join(c if c in keep or _harmless(c) else _escaped(c) for c in str(text))


def _harmless(c: str) -> bool:
    if " " <= c <= "~":
        return True
    category = unicodedata.category(c)
    return category not in ("Cc", "Cs", "Zl", "Zp") and c not in _MARKS and unicodedata.bidirectional(c) not in _TURNS


def _escaped(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # how Python reads a byte of a name that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()
