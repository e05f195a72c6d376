"""The installed command, `chanprune train ...`; `python -m chanprune train ...` is the same.

What lies beside this file is a command, named and explained as its file is.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

from chanprune.processes.errors import UserError, one_line
from chanprune.processes.texts import as_called, did_you_mean

HERE = Path(__file__).parent
VERSIONS = ("torch", "torchvision", "hydra-core", "onnxruntime", "timm", "optuna")
COMPOSES = "cli.main("  # in the source of a command that Hydra completes


def main() -> None:
    """Find the command, and let it do the rest."""
    with one_line():
        match sys.argv[1:]:
            case [] | ["-h" | "--help"]:
                print(as_called(overview()))
            case ["--version"]:
                print(versions())
            case ["-sc" | "--shell-completion", asked]:
                _complete(asked)
            case [name, *arguments]:
                _call(name, *arguments)


def commands() -> dict[str, Path]:
    """Return each command's name and its file."""
    found = {path.stem: path for path in sorted(HERE.glob("*.py"))}
    return {name: path for name, path in found.items() if not name.startswith("_")}


def overview() -> str:
    """Say what each command is for, as the first line of its file does; imports none of them."""
    known = {name: path.read_text(encoding="utf-8") for name, path in commands().items()}
    lines = {
        name: (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
        for name, text in known.items()
    }
    width = max(map(len, known))
    return "\n".join(
        [
            "chanprune: train convolutional networks whose channels can be taken out.",
            "",
            *(
                f"  {name:{width}}  {line.partition(': `')[0].removesuffix('.')}"
                for name, line in lines.items()
            ),
            "",
            "python -m chanprune.COMMAND --help says what it takes; --version says what is here.",
        ]
    )


def versions() -> str:
    """Return the versions of what results depend on, where it is installed, one a line."""
    from chanprune import __version__

    found = {"chanprune": __version__, "Python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "\n".join(f"{name} {version}" for name, version in found.items())


def _call(name: str, *arguments: str) -> None:
    """Call a command as if it had been called by itself; raises UserError."""
    known = commands()
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"{name}: no such command; choose from: {', '.join(known)}{hint}")
    sys.argv[1:] = arguments
    import_module(f"chanprune.{name}").main()


def _complete(asked: str) -> None:
    """Answer a shell: the names of the commands, and behind one of them what Hydra completes."""
    line = os.environ.get("COMP_LINE", "")
    _, name, *rest = [*line.split(maxsplit=2), "", ""]
    if not asked.startswith("query="):
        _call("train", "-sc", asked)
    elif line.endswith(name) and not rest[0]:
        print("\n".join(command for command in commands() if command.startswith(name)))
    elif name in commands() and COMPOSES in commands()[name].read_text(encoding="utf-8"):
        os.environ["COMP_LINE"] = f"chanprune {rest[0]}"
        _call(name, "-sc", asked)


if __name__ == "__main__":
    main()
