"""Imports point downwards only."""

import ast
import re
from pathlib import Path

from chanprune.__main__ import commands
from chanprune.methods import METHODS

PACKAGE = Path(__file__).parents[1] / "chanprune"
# Package -> those below it that it may import.
ALLOWED = {
    "processes": {"channels"},
    "files": {"processes"},
    "channels": set(),
    "formats": {"processes", "files", "channels"},
    "components": {"processes"},
    "records": {"processes", "files"},
    "show": {"processes", "files", "channels", "records"},
    "rewiring": {"channels", "show"},
    "models": {"processes", "channels", "components"},
    "survey": {"processes", "files", "channels", "models"},
    "data": {"processes", "files", "channels", "components"},
    "runtimes": {"processes", "files", "channels", "formats"},
    "latency": {"channels", "files", "runtimes"},
    "criteria": {"channels", "components"},
    "methods": {"processes", "channels", "components", "rewiring", "show"},
    "pipeline": {
        *("processes", "files", "channels", "components", "rewiring", "models", "data"),
        *("methods", "criteria", "records", "show", "formats", "runtimes", "latency"),
    },
    "config": {"processes", "files", "channels", "components", "models", "methods", "records"},
    "api": {
        *("processes", "files", "channels", "components", "models", "methods", "criteria"),
        *("records", "pipeline", "latency", "runtimes"),
    },
    "benchmarking": {
        *("processes", "files", "channels", "formats", "runtimes", "components", "rewiring"),
        *("models", "records", "api"),
    },
    "searching": {
        *("processes", "files", "records", "show", "runtimes", "pipeline", "config"),
        "benchmarking",
    },
    "papers": {
        *("processes", "files", "channels", "components", "models", "data", "methods"),
        *("pipeline", "config"),
    },
}
HYDRA = {"hydra", "omegaconf"}
SCHEMAS = {"config", "records", "components"}


def imports(path: Path) -> set[str]:
    """List what a file imports, "chanprune.files.writing" for a module or a name in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(path: Path) -> str:
    parts = ("chanprune", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def modules_that_are_imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, not those that only hold them."""
    names = [name for name in imports(path) if name.startswith("chanprune")]
    return {name if name in FILES else name.rpartition(".")[0] for name in names} & FILES.keys()


def test_only_commands_lie_at_the_top():
    assert commands().keys() >= {"train", "prune", "evaluate", "report", "cache"}
    for path in commands().values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            path
        )
        assert f"python -m chanprune.{path.stem}" in path.read_text(encoding="utf-8"), path
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert folders == ALLOWED.keys()


def test_imports_point_downwards():
    assert len(FILES) > 30
    for name, path in FILES.items():
        package = path.relative_to(PACKAGE).parts[0]
        if path.parent == PACKAGE:
            continue
        used = {other.split(".")[1] for other in modules_that_are_imported(path) if "." in other}
        assert used <= ALLOWED[package] | {package}, f"{name} imports {used - ALLOWED[package]}"


def test_the_pipeline_knows_no_method_by_name():
    own = set(METHODS) - {"none", "random"}  # which are words
    own |= {metric for name in METHODS for metric in METHODS[name].percentages}
    for path in (PACKAGE / "pipeline").glob("*.py"):
        words = set(re.findall(r"\w+", path.read_text(encoding="utf-8").lower()))
        assert not words & own, f"{path.name}: {words & own}"


def test_methods_know_charts_and_no_pictures():
    for path in (PACKAGE / "methods").glob("*.py"):
        shown = {n for n in modules_that_are_imported(path) if n.startswith("chanprune.show")}
        assert shown <= {"chanprune.show.charts"}, path


def test_no_module_imports_itself_by_way_of_others():
    below = {name: modules_that_are_imported(path) - {name} for name, path in FILES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " imports ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(below[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_hydra_stops_at_the_configuration():
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0]
        used = {name.split(".")[0] for name in imports(path)}
        if package != "config" and path.parent != PACKAGE:
            assert not used & HYDRA, path
        if package not in SCHEMAS:
            assert "pydantic" not in used, path


def test_slicing_is_done_in_the_channel_core_alone():
    index_layer_of_its_own = PACKAGE / "models" / "condensenet.py"
    for part in ("methods", "models", "pipeline"):
        for path in set((PACKAGE / part).rglob("*.py")) - {index_layer_of_its_own}:
            text = path.read_text(encoding="utf-8")
            assert "index_select" not in text, path
            assert "take_along_dim" not in text, path
