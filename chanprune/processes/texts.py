"""Texts that somebody else may have written, as a terminal, a page or a spreadsheet takes them."""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@")


def printable(text: str) -> str:
    """Return a text in which what a terminal would obey, or hide, is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell(text: str) -> str:
    """Return a text as a cell of a CSV file that no spreadsheet takes for a formula."""
    return f"'{printable(text)}" if text.lstrip().startswith(FORMULA) else printable(text)


def shortened(text: str, most: int = 80) -> str:
    """Return a text of so many characters at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
