"""The walls of the house: who imports whom, no cycles, small files, one name for one thing, nothing heavy at start."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import perturblab

ROOT = Path(perturblab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

LEAVES = {"errors", "seeding", "stats"}  # modules at the top of the package, which import nothing of ours but errors
# room -> the rooms that it may import, beside the leaves. A sub-room has a row of its own.
ALLOWED: dict[str, set[str]] = {
    "system": set(),
    "layers.kernels": {"system"},
    "layers": {"layers.kernels", "records.choices"},
    "models": {"layers", "layers.kernels", "records.choices"},
    "data": {"system"},
    # The names of choices, which the library's rooms check too: a file that imports nothing.
    "records.choices": set(),
    "records": {"records.choices", "system"},
    "records.pictures": {"records", "system"},
    "attacks": {"records", "records.choices"},
    "training": {"attacks", "records.choices", "system"},
    "runs": {
        *("attacks", "data", "layers", "layers.kernels", "models", "records", "records.pictures", "training", "system"),
    },
    "runs.attack": {
        *("runs", "attacks", "layers", "layers.kernels", "models", "records", "records.pictures", "training", "system"),
    },
    "runs.export": {
        *("runs", "attacks", "layers", "layers.kernels", "models", "records", "records.pictures", "training", "system"),
    },
    "studies": {"records", "system"},
    "report": {"studies", "records", "records.pictures"},
    "cli": {
        *("runs", "runs.attack", "runs.export", "models", "studies", "report", "records", "records.pictures", "system"),
    },
}
NEVER_TORCH = {"system", "records", "studies", "report", "cli"}
NEVER_SEEDING = NEVER_TORCH | {"errors", "stats"}  # seeding makes torch generators
# Content that is to become data: its size says nothing about the code.
CONTENT = ("studies/catalogue/", "studies/presets.py")
# function -> why it takes more than six parameters.
WIDE: dict[str, str] = {
    "attacks/gradient.py:pgd": "what every attack takes, its effort, and two ways to vary the ascent",
    "attacks/masking.py:examine": "what every attack takes, its effort, and the attacks of others",
    "attacks/noise.py:universal_perturbation": "what every attack takes, and two numbers of its ascent",
    "layers/kernels/fused.py:perturb_conv2d": "the operands of one formula, as torch.nn.functional has them",
    "layers/kernels/native.py:_forward": "an operator of torch.library takes tensors and numbers, not objects",
    "layers/kernels/native.py:_backward": "an operator of torch.library takes tensors and numbers, not objects",
}


def room(path: Path) -> str:
    """The room or sub-room of a file; a file at the top of the package is a room of its own."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    two = ".".join(parts[:2])
    return two if two in ALLOWED else parts[0]


def modules_imported(path: Path) -> Iterator[Path]:
    """The files of ours that a file imports, at any place but for type checkers only."""
    tree = TREES[path]
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
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield from filter(None, [_file_of(name)])


def _file_of(name: str) -> Path | None:
    """The file of ours that a dotted name lies in; None for other packages."""
    parts = name.split(".")
    if parts[0] != "perturblab":
        return None
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[1:count])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if count > 1 and file.is_file():
                return file
    return ROOT / "__init__.py"


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file imports, without its own."""
    return {room(file) for file in modules_imported(path) if file != ROOT / "__init__.py"} - {room(path)}


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method with its name in the file."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{m.name}", m) for m in node.body if isinstance(m, ast.FunctionDef))


def test_every_room_has_its_row() -> None:
    assert {room(path) for path in FILES} == {*ALLOWED, *LEAVES, "__init__", "__main__"}


def test_the_page_about_the_architecture_has_the_same_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    table = page.split("| room | may import |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", table, re.MULTILINE))
    assert {name: set(re.findall(r"`([\w.]+)`", others)) for name, others in rows.items()} == ALLOWED


def test_the_package_imports_modules_and_not_its_public_names() -> None:
    public = {ROOT / name / "__init__.py" for name in ("layers", "models", "attacks", "training", "records")}
    found = {path for path in FILES if path.name != "__init__.py" and public & set(modules_imported(path))}
    assert found == set()


def test_few_modules_lie_outside_the_rooms() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == {*LEAVES, "__init__", "__main__"}


def test_rooms_import_only_what_their_row_says() -> None:
    found = defaultdict(set)
    for path in FILES:
        allowed = {"cli"} if path.stem == "__main__" else ALLOWED.get(room(path), set())
        free = {"errors"} if room(path) in LEAVES else LEAVES - ({"seeding"} if room(path) in NEVER_SEEDING else set())
        for other in rooms_imported(path) - allowed - free:
            found[room(path), other].add(str(path.relative_to(ROOT)))
    assert dict(found) == {}


def test_no_row_allows_what_nobody_imports() -> None:
    imported = defaultdict(set)
    for path in FILES:
        imported[room(path)] |= rooms_imported(path)
    # Two sub-rooms of runs share one row, which says what the outside of a run may use.
    shared = {"runs.attack", "runs.export"}
    unused = {name: row - imported[name] for name, row in ALLOWED.items() if name not in shared}
    assert {name: row for name, row in unused.items() if row} == {}


@pytest.mark.parametrize("of", [room, lambda path: path], ids=["rooms", "files"])
def test_there_are_no_cycles(of) -> None:
    edges = defaultdict(set)
    for path in FILES:
        edges[of(path)] |= {of(file) for file in modules_imported(path)}
        edges[of(path)] -= {of(path)}
    done = set()
    while ready := {name for name, names in edges.items() if name not in done and names <= done}:
        done |= ready
    assert set(edges) - done == set()


def test_files_stay_small_enough_to_read() -> None:
    """At most 300 lines; content that is to become data may have more."""
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert len(lines) > 100
    long = {name: count for name, count in lines.items() if count > (430 if name.startswith(CONTENT) else 300)}
    assert long == {}


def test_a_public_name_is_defined_once() -> None:
    """A reader who searches for a name finds one definition. Nested names and methods are free."""
    places = defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_functions_take_few_parameters() -> None:
    """At most six; those with more stand in `WIDE`, each with its reason."""
    wide = {
        f"{path.relative_to(ROOT)}:{name}"
        for path, tree in TREES.items()
        for name, node in functions(tree)
        if len([a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]) > 6
    }
    assert wide == set(WIDE)
    assert all(WIDE.values())


def test_docstrings_begin_plainly() -> None:
    """With what a function does or a thing is: never with "What" or "Whether"."""
    found = []
    for path in [*FILES, *TESTS]:
        tree = TREES.get(path) or ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if text.split(" ")[0] in ("What", "Whether"):
                    found.append(f"{path.name}: {text[:60]}")
    assert found == []


def test_light_rooms_do_not_import_torch() -> None:
    """Import every module of the light rooms in one process; it stops at the first that loads torch."""
    light = [path for path in FILES if room(path).split(".")[0] in NEVER_TORCH | {"errors", "stats"}]
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for path in light]
    assert len(names) > 70
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
from perturblab.records.environment import environment
environment(threads=1, precision="fp32", compile="off", device="cpu")
without("torch", "scipy", "matplotlib", "datasets")
import perturblab.report.groups_table
without("torch", "scipy", "matplotlib", "rich")
from perturblab.records.dataframe import frame
assert not frame(sys.argv[1]).empty
without("torch")
"""


def test_the_catalogue_records_and_their_tables_load_nothing_heavy() -> None:
    folder = Path(__file__).parents[1] / "results" / "cifar10-jpeg"
    done = subprocess.run([sys.executable, "-c", LIGHT, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


def test_no_file_of_tests_is_imported_by_another() -> None:
    """Code that several tests need lies in builders.py, or in another file without tests."""
    found = []
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, name) for name in names if name.startswith("test_")]
    assert len(TESTS) > 50
    assert found == []


def test_files_of_tests_stay_small_enough_to_read() -> None:
    long = {path.name: count for path in TESTS if (count := len(path.read_text().splitlines())) > 500}
    assert long == {}


def test_no_module_works_at_import() -> None:
    """Top-level statements define; they do not call anything but what makes constants."""
    for path, tree in TREES.items():
        if path.name == "__main__.py":
            continue
        for node in tree.body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            defines = is_docstring or ast.unparse(node).split("(")[0].endswith(".register_autograd")
            assert not isinstance(node, ast.Expr) or defines, f"{path}: {ast.unparse(node)}"
            assert not isinstance(node, ast.For | ast.While | ast.With), f"{path}: {ast.unparse(node)[:60]}"
