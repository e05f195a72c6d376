"""Where the trials of a search are kept: a file in its folder, or a database of the user's."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chanprune.files.reading import json_if_any
from chanprune.files.writing import write_json
from chanprune.processes.errors import UserError

if TYPE_CHECKING:
    import optuna

JOURNAL, OLD, MARK = "study.log", "study.db", "study.json"
NAME = "chanprune"
ASKED, FOLDER = "asked", "folder"  # of a study: what it searches; the mark of its folder


def the_optuna() -> Any:
    """Import Optuna; raises UserError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'chanprune[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def opened(folder: Path, database: str | None, asked: str) -> optuna.Study:
    """Open a search's study, or begin it; the caller holds the folder's lock.

    Args:
        folder: The search's; all processes that work on it share it.
        database: Its address, as SQLAlchemy takes it; None: a file in the folder.
        asked: A digest of what is searched.

    Raises:
        UserError: The study is another's, or the database cannot be reached.
    """
    mark = _mark(folder, database)
    try:
        study: optuna.Study = the_optuna().create_study(
            storage=_storage(folder, database),
            study_name=f"{NAME}-{asked}" if database else NAME,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
    except Exception as error:
        if database is None:
            raise
        kind, reason = database.partition(":")[0], f"{error}".strip().split("\n")[0]
        hidden = reason.replace(database, f"{kind}:...")
        raise UserError(f"--storage={kind}:... cannot be used: {hidden}") from error
    for key, value, other in (
        (FOLDER, mark, "that database has this search from another folder; all share one --dir"),
        (ASKED, asked, f"--dir={folder} holds a search for something else; give another --dir"),
    ):
        if study.user_attrs.get(key, value) != value:
            raise UserError(other)
        if key not in study.user_attrs:
            study.set_user_attr(key, value)
    return study


def _mark(folder: Path, database: str | None) -> str:
    """Return what tells the folder from others; refuse one whose search is kept elsewhere."""
    found = json_if_any(folder / MARK)
    if found is None:
        if database is not None and any((folder / name).exists() for name in (JOURNAL, OLD)):
            found = {"mark": "", "database": False}
        else:
            found = {"mark": uuid.uuid4().hex, "database": database is not None}
            write_json(folder / MARK, found)
    if found["database"] != (database is not None):
        where = "in a database; give --storage" if found["database"] else "there; give no --storage"
        raise UserError(f"--dir={folder}: this search is kept {where}")
    return str(found["mark"])


def _storage(folder: Path, database: str | None) -> Any:
    if database is not None:
        return database
    if (folder / OLD).exists():
        return f"sqlite:///{folder / OLD}"
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Mended(JournalFileOpenLock):
        """No lock, as the folder's is held: but a line that a kill tore must not get another."""

        def acquire(self) -> bool:
            mend(folder / JOURNAL)
            return True

        def release(self) -> None:
            pass

    path = str(folder / JOURNAL)
    return JournalStorage(JournalFileBackend(path, lock_obj=Mended(path)))


def mend(path: Path) -> None:
    """Remove the end of a file behind its last line, if there is one."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        whole = size
        while whole:
            file.seek(whole - 1)
            if file.read(1) == b"\n":
                break
            whole -= 1
    if whole < size:
        os.truncate(path, whole)
