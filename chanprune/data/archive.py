"""A directory or zip file, read member by member without unpacking."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from chanprune.data.image import decode
from chanprune.files.reading import refuse_irregular
from chanprune.processes.errors import UserError

MAX_FILE = 2**29


@dataclass
class Archive:
    """A directory or a zip file.

    Every process opens the zip file for itself: a handle that a forked worker inherits shares
    its position with the parent's, and two that read at once get each other's bytes.
    """

    path: Path
    _opened: zipfile.ZipFile | None = field(default=None, repr=False)
    _opened_by: int | None = field(default=None, repr=False)
    _members: dict[str, zipfile.ZipInfo] = field(default_factory=dict, repr=False)

    def members(self) -> list[str]:
        """List all files and directories (ending in /), relative to the archive.

        Raises:
            UserError: The path does not exist, is neither, or cannot be read.
        """
        try:
            if self.path.is_dir():
                return list(_walk(self.path))
        except OSError as error:
            raise UserError(
                f"dataset.root={self.path}: {error.filename} cannot be read: {error.strerror}"
            ) from error
        self._zip()
        return list(self._members)

    def read(self, member: str) -> Image.Image:
        """Decode one image, see `decode`.

        Raises:
            UserError: It cannot be read.
        """
        try:
            return decode(self._content(member))
        except Exception as error:
            raise self._unreadable(member, error) from error

    def size(self, member: str) -> int:
        """Return how many bytes a file has.

        Raises:
            UserError: It is no regular file, or is not there.
        """
        try:
            return self._size(member)
        except (OSError, ValueError) as error:
            raise self._unreadable(member, error) from error

    def _content(self, member: str) -> bytes:
        size = self._size(member)
        if size > MAX_FILE:
            raise ValueError(f"it has {size >> 20:,} MiB, and {MAX_FILE >> 20} are the most")
        if self.path.is_dir():
            return (self.path / member).read_bytes()
        return self._zip().read(self._member(member))

    def _size(self, member: str) -> int:
        if self.path.is_dir():
            return refuse_irregular(self.path / member)
        return self._member(member).file_size

    def _unreadable(self, member: str, error: Exception) -> UserError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return UserError(
            f"{self.path}: the image {member} cannot be read ({reason}); replace or remove it"
        )

    def checksum(self, member: str) -> int:
        """Return the checksum of a file that a zip archive holds; 0 in a directory."""
        return 0 if self.path.is_dir() else self._member(member).CRC

    def times(self, member: str) -> tuple[int, ...]:
        """Return what changes when a file of a directory is written or renamed."""
        if not self.path.is_dir():
            return ()
        about = (self.path / member).stat()
        return about.st_mtime_ns, about.st_ctime_ns, about.st_ino

    def _member(self, member: str) -> zipfile.ZipInfo:
        self._zip()
        return self._members[member]

    def _zip(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened_by != os.getpid():
            if not self.path.exists():
                raise UserError(
                    f"dataset.root={self.path} does not exist; give a directory or zip file"
                )
            if not self.path.is_file():
                raise UserError(
                    f"dataset.root={self.path} is neither a directory nor a file; "
                    "give a directory or zip file"
                )
            try:
                self._opened, self._opened_by = zipfile.ZipFile(self.path), os.getpid()
                self._members = {_plain(info.filename): info for info in self._opened.infolist()}
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"dataset.root={self.path} is not a readable zip archive: {error}"
                ) from error
        return self._opened

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_opened": None, "_opened_by": None, "_members": {}}


def _plain(name: str) -> str:
    """Write a member's name with single slashes, whatever tool made the archive."""
    name = name if "/" in name else name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    return "/".join(parts) + "/" * name.endswith("/")


def _walk(root: Path) -> Iterator[str]:
    """Yield all files and directories; links are followed, but not in a circle."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        here = Path(folder)
        folders[:] = [name for name in folders if not _leads_back(here / name)]
        prefix = "" if here == root else f"{here.relative_to(root).as_posix()}/"
        yield from (f"{prefix}{name}/" for name in folders)
        yield from (f"{prefix}{name}" for name in files)


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.resolve() in folder.parent.resolve().joinpath("x").parents
