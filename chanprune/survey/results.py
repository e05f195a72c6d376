"""The results of a survey: a line of JSON for each network, written when it is done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from chanprune.files.reading import text_of
from chanprune.files.writing import json_lines, make_folder
from chanprune.processes.errors import RunError, UserError

Row = dict[str, Any]


class Results:
    """A file of results, to be gone on with.

    Attributes:
        rows: Network -> what was found.
        lists: (library, its version) -> the networks that stand for it, which take minutes to find.
    """

    def __init__(self, path: Path):
        """Read what is there; a last line that was not written to its end is dropped.

        Raises:
            UserError: It is no such file.
        """
        self.path = path
        self.rows: dict[str, Row] = {}
        self.lists: dict[tuple[str, str], list[str]] = {}
        self._size, self._is_torn = 0, False
        for line in self._lines():
            self._take(line)

    def add(self, line: Row) -> None:
        """Append a line, on the disk before this returns.

        Raises:
            RunError: It cannot be written.
        """
        try:
            make_folder(self.path.parent)
            with self.path.open("ab") as file:
                if self._is_torn:
                    file.truncate(self._size)
                file.write(json_lines([line]).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from error
        self._is_torn = False
        self._take(line)

    def _lines(self) -> list[Row]:
        if not self.path.exists():
            return []
        try:
            whole, newline, torn = text_of(self.path).rpartition("\n")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error
        self._size, self._is_torn = len(f"{whole}{newline}".encode()), bool(torn)
        lines = []
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict) or not line.keys() & {"network", "library"}:
                raise UserError(f"{self.path}, line {number}: no result; give another --out")
            lines.append(line)
        return lines

    def _take(self, line: Row) -> None:
        if "library" in line:
            self.lists[line["library"], line["version"]] = line["networks"]
        else:
            self.rows[line["network"]] = line
