"""The walls of the house: who may import whom, no cycles, small files, nothing heavy behind --help."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import perturblab

ROOT = Path(perturblab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Leaves that all may import; every other part may import what stands here and nothing else of ours.
LEAVES = {"errors", "extras", "files", "seeding"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "extras": set(),
    "files": set(),
    "seeding": set(),
    "kernels": set(),
    "layers": {"kernels"},
    "models": {"kernels", "layers"},
    "data": set(),
    "schedules": set(),
    "evaluate": set(),
    "ranks": {"machine"},
    "train": {"ranks", "schedules"},
    "plain": set(),
    "saved": {"train"},
    "checkpoint": {"plain"},
    "records": {"numerics"},
    "numerics": set(),
    "stats": set(),
    "markdown": set(),
    "groups": {"records"},
    "report": {
        "catalogue",
        "config",
        "groups",
        "markdown",
        "numerics",
        "points",
        "presets",
        "records",
        "stats",
        "style",
    },
    "style": set(),
    "figures": {"style"},
    "config": set(),
    "attacks": set(),
    "catalogue": set(),
    "defences": {"attacks", "layers"},
    "masking": {"attacks", "points"},
    "points": {"stats"},
    "robustness_figures": {"points", "style"},
    "card": {"groups", "markdown", "points", "records", "stats"},
    "frames": {"groups", "records", "stats"},
    "logs": set(),
    "targets": {"attacks", "config", "defences", "layers", "masking", "points", "progress", "runs"},
    "attacked": {
        *(
            "attacks",
            "config",
            "evaluate",
            "masking",
            "numerics",
            "points",
            "progress",
            "robustness_figures",
            "runs",
            "stats",
        ),
        *("targets", "unfinished"),
    },
    "unfinished": set(),
    "configured": {"attacks", "config", "data", "defences", "layers", "models", "train"},
    "recording": {"config", "configured", "evaluate", "kernels", "layers", "models", "numerics", "records"},
    "machine": set(),
    "progress": {"machine"},
    "runs": {
        *("attacks", "checkpoint", "config", "configured", "data", "defences", "evaluate", "layers", "machine"),
        *("models", "progress", "ranks", "records", "saved", "train"),
    },
    "execution": {
        *(
            "checkpoint",
            "config",
            "evaluate",
            "figures",
            "logs",
            "machine",
            "numerics",
            "progress",
            "ranks",
            "recording",
        ),
        *("records", "runs", "stats", "train"),
    },
    "onnx_export": {"attacks", "kernels", "layers", "progress", "runs"},
    "pretrained": {
        *("attacks", "card", "checkpoint", "configured", "data", "layers", "models", "points", "progress", "records"),
        "runs",
    },
    "arguments": set(),
    "config_file": {"arguments"},
    "presets": {"catalogue", "config"},
    "matching": {"config", "numerics", "points", "records"},
    "planning": {"catalogue", "config", "matching", "numerics", "presets"},
    "study": {"machine", "matching", "planning", "points", "progress", "records"},
    "study_ray": {"machine", "planning", "progress", "study"},
    "cli_report": {"arguments", "report"},
    "cli_catalogue": {
        *("arguments", "catalogue", "machine", "planning", "presets", "progress", "report", "stats"),
        *("study", "study_ray"),
    },
    "cli_export": {"arguments", "onnx_export", "pretrained", "progress"},
    "cli": {
        *("cli_catalogue", "cli_export", "cli_report", "logs"),
        *("arguments", "attacked", "checkpoint", "config", "configured", "execution", "kernels", "machine", "models"),
        *("config_file", "progress", "ranks", "records", "robustness_figures", "runs", "stats"),
    },
    "__main__": {"cli"},
    "__init__": set(),
}
NEVER_TORCH = {
    "records",
    "numerics",
    "stats",
    "groups",
    "markdown",
    "presets",
    "matching",
    "planning",
    "study",
    "study_ray",
    "cli_catalogue",
    "cli_report",
    "cli_export",
    "card",
    "extras",
    "frames",
    "logs",
    "report",
    "figures",
    "points",
    "robustness_figures",
    "style",
    "config",
    "arguments",
    "config_file",
    "errors",
    "files",
    "machine",
    "progress",
    "cli",
    "catalogue",
}


def part(path: Path) -> str:
    """The room of a file: its folder below the package, or its own name."""
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports; those for type checkers only are left out."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "perturblab":
            yield from (f"perturblab.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def parts_imported(path: Path) -> set[str]:
    """The rooms that a file imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("perturblab.")}
    return names - {"__version__"}


def test_every_room_is_in_the_table() -> None:
    assert {part(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_allowed(path: Path) -> None:
    assert parts_imported(path) - {part(path)} - LEAVES <= ALLOWED[part(path)]


def test_there_are_no_cycles() -> None:
    edges = {path: parts_imported(path) - {part(path)} for path in FILES}
    rooms: dict[str, set[str]] = {}
    for path, names in edges.items():
        rooms.setdefault(part(path), set()).update(names)
    done: set[str] = set()
    while ready := {room for room, names in rooms.items() if room not in done and names <= done}:
        done |= ready
    assert done == set(rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 430


def test_light_rooms_do_not_import_torch() -> None:
    """Import every module of the light rooms in one process; it stops at the first that loads torch."""
    light = [path for path in FILES if part(path) in NEVER_TORCH]
    assert {part(path) for path in light} == NEVER_TORCH
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for path in light]
    code = "import sys\nfor name in sys.argv[1:]:\n    __import__(name)\n    'torch' in sys.modules and sys.exit(name)"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


LIGHT = """
import sys

def without(*heavy):
    assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)

import perturblab.studies.catalogue
without("torch", "numpy", "pydantic")
import perturblab.stats
without("torch", "scipy", "matplotlib")
from perturblab.records import record
records.environment(threads=1, precision="fp32", compile="off", device="cpu")
without("torch", "scipy", "matplotlib", "datasets")
import perturblab.report.groups_table
without("torch", "scipy", "matplotlib", "rich")
from perturblab.records.frame import frame
assert not frame(sys.argv[1]).empty
without("torch")
"""


def test_the_catalogue_records_and_their_tables_load_nothing_heavy() -> None:
    folder = Path(__file__).parents[1] / "results" / "cifar10-jpeg"
    done = subprocess.run([sys.executable, "-c", LIGHT, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


TESTS = sorted(Path(__file__).parent.glob("*.py"))


def test_files_of_tests_stay_small_enough_to_read() -> None:
    assert {path.name: lines for path in TESTS if (lines := len(path.read_text().splitlines())) > 500} == {}


def test_no_file_of_tests_is_imported_by_another() -> None:
    """What several tests need lies in builders.py, or in another file without tests."""
    imports = {path.name: [name for name in imported(path) if name.startswith("test_")] for path in TESTS}
    assert len(imports) > 50
    assert {name: found for name, found in imports.items() if found} == {}


def test_no_module_works_at_import() -> None:
    """Top-level statements define; they do not call anything but what makes constants."""
    for path in FILES:
        if path.name == "__main__.py":
            continue
        for node in ast.parse(path.read_text()).body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            defines = is_docstring or ast.unparse(node).split("(")[0].endswith(".register_autograd")
            assert not isinstance(node, ast.Expr) or defines, f"{path}: {ast.unparse(node)}"
            assert not isinstance(node, ast.For | ast.While | ast.With), f"{path}: {ast.unparse(node)[:60]}"
