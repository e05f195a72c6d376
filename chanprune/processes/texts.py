"""Texts that somebody else may have written, as a terminal, a page or a spreadsheet takes them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path

FORMULA = ("=", "+", "-", "@")
MODULE = "python -m chanprune."


def printable(text: str) -> str:
    """Return a text in which what a terminal would obey, or hide, is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell(text: str) -> str:
    """Return a text as a cell of a CSV file that no spreadsheet takes for a formula."""
    return f"'{printable(text)}" if text.lstrip().startswith(FORMULA) else printable(text)


def shortened(text: str, most: int = 80) -> str:
    """Return a text of so many characters at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def as_called(text: str) -> str:
    """Return a text that names commands, `python -m chanprune.train`, as this process was called.

    Where the installed command was, `chanprune train` is what works: it may have an interpreter of
    its own.
    """
    called = Path(sys.argv[0])
    if called.name in {"chanprune", "chanprune.exe"}:
        return text.replace(MODULE, "chanprune ")
    if called.parts[-2:] == ("chanprune", "__main__.py"):
        return text.replace(MODULE, "python -m chanprune ")
    return text
