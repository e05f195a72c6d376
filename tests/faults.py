"""Commands that are killed, or find the disk full, at a file operation of choice."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
TAKES_ROOM = {"open", "os.mkdir", "os.link"}
TORN = b'{"torn'


@dataclass
class Fault:
    """Watches the operations that change files below a folder, and fails at one of them.

    Attributes:
        folder: The folder.
        aside: A folder outside; operations.json there lists what was seen.
        kind: "none"; "kill" before the operation; "torn", which kills when a file has been opened
            and got a few bytes; "full", a full disk from there on; "copy", which puts the folder
            as a kill would leave it, at every operation, into a folder of its own.
        position: Of the operation, from 0.
    """

    folder: Path
    aside: Path
    kind: Literal["none", "kill", "torn", "full", "copy"] = "none"
    position: int = -1

    def arm(self) -> None:
        """Watch this process from here on."""
        self.aside.mkdir(exist_ok=True)
        self.operations: list[str] = []
        self.busy = False
        sys.addaudithook(self._see)

    def tell(self) -> None:
        """Write down what was seen."""
        self.busy = True
        (self.aside / "operations.json").write_text(json.dumps(self.operations))

    def _see(self, event: str, values: tuple[Any, ...]) -> None:
        if self.busy or not (event in CHANGES or _opens_to_write(event, values)):
            return
        path = _target(event, values)
        if not path.startswith(f"{self.folder}{os.sep}"):
            return
        number = len(self.operations)
        if self.kind == "full" and number >= self.position and event in TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if "tfevents" in path:  # TensorBoard's thread may do it a little earlier or later
            return
        self.operations.append(f"{event} {path.removeprefix(f'{self.folder}{os.sep}')}")
        self.busy = True
        if self.kind == "copy":
            self._copy(number, Path(path), values[2] if event == "open" else None)
        elif self.kind in {"kill", "torn"} and number == self.position:
            if self.kind == "torn" and event == "open":
                _tear(Path(path), values[2])
            os.kill(os.getpid(), signal.SIGKILL)
        self.busy = False

    def _copy(self, number: int, path: Path, flags: int | None) -> None:
        for kind in ("kill", "torn") if flags is not None else ("kill",):
            copied = self.aside / f"{number:04}-{kind}"
            subprocess.run(["cp", "-a", str(self.folder), str(copied)], check=True)
            if kind == "torn" and flags is not None and path.parent.is_dir():
                _tear(copied / path.relative_to(self.folder), flags)


def _tear(path: Path, flags: int) -> None:
    """Leave a file as a process does that is killed while it writes."""
    if path.is_dir():
        return
    descriptor = os.open(path, flags & ~os.O_EXCL, 0o644)
    os.write(descriptor, TORN)
    os.close(descriptor)


def _opens_to_write(event: str, values: tuple[Any, ...]) -> bool:
    return event == "open" and isinstance(values[2], int) and bool(values[2] & WRITES)


def _target(event: str, values: tuple[Any, ...]) -> str:
    """Return the path that an operation changes."""
    two_paths = event in {"os.rename", "os.link"}
    path, at = (values[1], values[3]) if two_paths else (values[0], values[-1])
    if isinstance(path, int):
        return ""
    named = os.fsdecode(path)
    if event in CHANGES - {"os.truncate"} and at >= 0:
        named = os.path.join(os.readlink(f"/proc/self/fd/{at}"), named)
    return os.path.abspath(named)


def fingerprint(folder: Path) -> str:
    """Return a hash of all that a folder holds, but for what no run reads."""
    seen = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        seen.update(f"{name} {path.is_dir()}".encode())
        if path.is_file() and "tensorboard" not in name.parts and name.name != ".owner":
            seen.update(path.read_bytes())
    return seen.hexdigest()
