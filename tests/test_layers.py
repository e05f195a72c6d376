"""Imports point downwards only."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "chanprune"
ENTRY_POINTS = {"train", "evaluate", "summarize", "search", "sweep", "cli", "schema", "control"}
ALLOWED = {
    "ranks": set(),
    "digest": set(),
    "texts": set(),
    "errors": {"ranks", "texts"},
    "reading": set(),
    "files": {"errors"},
    "drawing": set(),
    "records": {"errors", "reading"},
    "cache": {"errors", "files", "reading", "texts"},
    "run_dir": {"digest", "errors", "files", "reading", "schema"},
    "published": {"errors"},
    "pareto": {"drawing"},
    "report_page": {"drawing"},
    "report_figures": {"drawing", "pareto"},
    "report_runs": {"records", "texts"},
    "report_table": {"report_runs", "texts"},
    "report": {
        *("drawing", "errors", "records"),
        *("report_runs", "report_table", "report_page", "report_figures"),
    },
    "channels": set(),
    "parallel": {"ranks", "errors", "channels"},
    "models": {"errors", "channels"},
    "data": {"digest", "errors", "reading", "channels"},
    "methods": {"errors", "channels", "parallel"},
    "pipeline": {
        *("ranks", "digest", "errors", "files", "reading", "records", "drawing", "parallel"),
        *("cache",),
        *("channels", "models", "data", "methods"),
    },
}
CONFIGURATION = {"hydra", "omegaconf"}
SCHEMAS = ENTRY_POINTS | {"records"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(name: str) -> str:
    return name.split(".")[1] if name.startswith("chanprune.") else ""


def test_imports_point_downwards():
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own in ENTRY_POINTS or own == "__init__":
            continue
        used = {part_of(name) for name in imports(path)} - {"", own, "__version__"}
        assert used <= ALLOWED[own], f"{path} imports {used - ALLOWED[own]}"


def test_hydra_stops_at_the_entry_points():
    for path in PACKAGE.rglob("*.py"):
        if path.stem not in ENTRY_POINTS:
            assert not {name.split(".")[0] for name in imports(path)} & CONFIGURATION, path
        if path.stem not in SCHEMAS:
            assert "pydantic" not in {name.split(".")[0] for name in imports(path)}, path


def test_slicing_is_done_in_the_channel_core_alone():
    index_layer_of_its_own = PACKAGE / "models" / "condensenet.py"
    for part in ("methods", "models", "pipeline"):
        for path in set((PACKAGE / part).rglob("*.py")) - {index_layer_of_its_own}:
            text = path.read_text(encoding="utf-8")
            assert "index_select" not in text, path
            assert "take_along_dim" not in text, path
