"""What is released: the wheel holds all that is needed and works in a clean environment; the papers agree with it."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import perturblab

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "perturblab"


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


def test_contributing_names_files_that_there_are() -> None:
    named = re.findall(r"`((?:src|tests|docs)/[\w/.]+\.\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 10
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(tmp_path: Path) -> None:
    """Its dependencies are those of this environment, found by path; the package is not."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("perturblab-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("perturblab/")}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert inside == {f"perturblab/{path.relative_to(PACKAGE).as_posix()}" for path in files}
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
