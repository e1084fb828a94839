"""The release: the wheel is complete and works in a clean environment, and the project files agree with it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import perturblab

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "perturblab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
(RELEASE,) = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"].values()
COMMANDS = [step["run"] for step in RELEASE["steps"] if "run" in step]
BUILD = [command for command in COMMANDS if command.startswith(("python -m build", "python -m twine"))]


def test_the_papers_name_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == perturblab.__version__
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()


def test_pre_commit_is_make_check_and_nothing_else() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == ["make check"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_templates_and_workflows_are_yaml(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["name"]
    assert content.get("body") or content.get("jobs")


# --- what is required ------------------------------------------------------------------------------------------------


def plain(name: str) -> str:
    """Normalise the name of a distribution or requirement as package indexes do."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ]", name)[0]).lower()


def imported(path: Path, owners: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the third-party distributions that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"perturblab"}:
            yield plain(owners[name][0])


def asked_for(path: Path) -> set[str]:
    """Find the extras that a file tells a user to install: require("onnx", ...), pip install 'perturblab[ray]'."""
    return set(re.findall(r"(?:\brequire\(\"|perturblab\[)(\w+)", path.read_text()))


def test_what_is_imported_is_required_and_nothing_else() -> None:
    """An import belongs to an extra if its file tells the user to install that extra; all others belong to the core."""
    core, owners = set[str](), packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        optional = {plain(name) for extra in asked_for(path) for name in EXTRAS[extra]}
        core |= set(imported(path, owners)) - optional
    assert core == {plain(name) for name in PROJECT["dependencies"]}


def test_what_releases_is_locked() -> None:
    """The workflow and the test below build with the same versions."""
    (install,) = (command for command in COMMANDS if command.startswith("python -m pip install"))
    pinned = dict(re.findall(r"(\w+)==([\w.]+)", install))
    assert set(pinned) == {"build", "setuptools", "twine"}
    assert pinned == {name: LOCK[name] for name in pinned}
    assert {"build", "twine"} <= {plain(name) for name in EXTRAS["dev"]}


# --- what is built ---------------------------------------------------------------------------------------------------


def built(folder: Path) -> tuple[Path, Path]:
    """Build and check the wheel and the sdist by the workflow's own commands, from a copy of the sources."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in BUILD:
        subprocess.run(command, shell=True, cwd=folder, env=environment, check=True, timeout=300)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_the_distributions_work_in_a_clean_environment(tmp_path: Path) -> None:
    """The clean environment finds the dependencies of this one by path, but not the package."""
    assert [command.split()[2] for command in BUILD] == ["build", "twine"]
    wheel, sdist = built(tmp_path / "tree")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("perturblab/")}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert inside == {f"perturblab/{path.relative_to(PACKAGE).as_posix()}" for path in files}
    with tarfile.open(sdist) as archive:
        sources = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in sources if ".egg-info/" not in name} == {
        *("LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"),
        *(f"src/{name}" for name in inside),
    }
    venv.create(tmp_path / "clean", with_pip=True)
    python, own = tmp_path / "clean" / "bin" / "python", Path(os.__file__).parent
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, timeout=300
    )
    (site,) = (tmp_path / "clean" / "lib").glob("python*/site-packages")
    around = [path for path in sys.path if path.endswith("site-packages") and own not in Path(path).parents]
    (site / "around.pth").write_text("\n".join(around) + "\n")
    for command in (["--help"], ["list", "--tag", "kl"], ["report", str(tmp_path), "-o", str(tmp_path / "page.html")]):
        done = subprocess.run(
            [tmp_path / "clean" / "bin" / "perturblab", *command],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
    assert (tmp_path / "page.html").stat().st_size > 100_000
