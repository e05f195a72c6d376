"""Which files of an image folder are read, as what, and which are not: split/class/name.ext."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

from chanprune.data.archive import Archive
from chanprune.processes.errors import UserError

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LAYOUT = "images are expected as SPLIT/CLASS/NAME.png (or .jpg, .webp, .bmp, .tif, .gif, .ppm)"


@dataclass(frozen=True)
class FolderIndex:
    """The images of an archive.

    Attributes:
        splits: "train", "test", and "val" where there is one -> class -> sorted members; the same
            sorted classes in each.
        notes: One line for each reason for which files are not read.
    """

    splits: dict[str, dict[str, list[str]]]
    notes: tuple[str, ...]


def index_of(archive: Archive) -> FolderIndex:
    """Sort an archive's files into splits and classes.

    A folder around all splits is skipped. `SPLITS` lists the names that a split may have, in upper
    or lower case.

    Raises:
        UserError: A split or the images of a class are missing, or splits differ in their classes.
    """
    members = [member for member in archive.members() if not _is_hidden(member)]
    on_top = _folders_on_top(members)
    folders: defaultdict[str, set[str]] = defaultdict(set)
    found: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    unread: defaultdict[str, list[str]] = defaultdict(list)
    for member in members:
        parts = member.rstrip("/").split("/")[on_top:]
        split = SPLITS.get(parts[0].lower()) if parts else None
        if split:
            folders[split].add(parts[0])
        if member.endswith("/"):
            if split and len(parts) == 2:
                found[split].setdefault(parts[1], set())
        elif reason := _reason_to_leave(parts, split):
            unread[reason].append("/".join(parts) or member)
        elif split:
            found[split][parts[1]].add(member)
    for split, names in folders.items():
        if len(names) > 1:
            both = " and ".join(sorted(names))
            raise UserError(f"{archive.path} has {both}, which are both a {split} split; keep one")
    _check(archive, found, unread)
    splits = {
        split: {name: sorted(found[split][name]) for name in sorted(found[split])}
        for split in ("train", "val", "test")
        if split in found
    }
    return FolderIndex(splits, tuple(_note(reason, files) for reason, files in unread.items()))


def _is_hidden(member: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in member.split("/"))


def _folders_on_top(members: list[str]) -> int:
    """Return how many folders there are around the splits: none or one."""
    inside = [member.lower().split("/") for member in members if "/" in member.rstrip("/")]
    first, second = ({parts[place] for parts in inside} for place in (0, 1))
    is_around = len(first) == 1 and not SPLITS.keys() & first and bool(SPLITS.keys() & second)
    return int(is_around)


def _reason_to_leave(parts: list[str], split: str | None) -> str | None:
    """Say why a file is not read, if it is not."""
    if split is None:
        return "outside of train, val and test"
    if PurePosixPath(parts[-1]).suffix.lower() not in EXTENSIONS:
        return "whose names are not those of images that are read"
    if len(parts) != 3:
        return "in no class folder" if len(parts) < 3 else "in folders below a class"
    return None


def _note(reason: str, files: list[str]) -> str:
    kinds = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in files)
    told = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(3))
    one = len(files) == 1
    return (
        f"{len(files):,} file{'' if one else 's'} {reason} {'is' if one else 'are'} not read "
        f"({told}; {'' if one else 'such as '}{min(files)})"
    )


def _check(
    archive: Archive,
    found: dict[str, defaultdict[str, set[str]]],
    unread: dict[str, list[str]],
) -> None:
    """Refuse what cannot be trained on; raises UserError."""
    notes = "".join(f"; {_note(reason, files)}" for reason, files in unread.items())
    for split in ("train", "test"):
        if split not in found:
            hint = ""
            if split == "test" and "val" in found:
                hint = (
                    "; to take the val split as the test split, rename its folder to test, and "
                    "validation images are held out of train"
                )
            raise UserError(f"{archive.path} has no {split} split; {LAYOUT}{hint}{notes}")
    for split, classes in found.items():
        for name, images in classes.items():
            if not images:
                raise UserError(f"{archive.path}: the class {split}/{name} has no images{notes}")
            if not name.isprintable():
                raise UserError(f"{archive.path}: rename the class folder {split}/{name!a}")
    for split, classes in found.items():
        odd = sorted(set(classes) ^ set(found["train"]))
        if odd:
            raise UserError(f"{archive.path}: train and {split} differ in the class {odd[0]!r}")
