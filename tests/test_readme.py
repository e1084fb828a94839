"""The README: its example runs, its commands parse, its table is that of the records."""

import re
import shlex
from pathlib import Path

import pytest

import perturblab
from perturblab.cli import main
from perturblab.cli.arguments import parse, select_fields
from perturblab.records.config import TrainConfig, validated
from perturblab.report import groups_table
from perturblab.studies.catalogue import CLAIMS, FIGURES
from snippets import blocks, commands, executed, promised

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def calls() -> list[str]:
    """Collect the perturblab commands of the README and the documents, also those through `torchrun`."""
    texts = [README, *(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))]
    found = [re.split(r"^perturblab |^torchrun .*-m perturblab ", line) for text in texts for line in commands(text)]
    return [parts[1].split(" > ")[0] for parts in found if len(parts) == 2]


def test_example_runs_and_prints_what_its_comments_say() -> None:
    (example,) = blocks(README, "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    printed = executed(example, {}, "README.md")
    assert promised(example)
    assert printed[: len(promised(example))] == promised(example)
    assert "'trainable': 92122" in printed[-1]


TABLES = {
    "README.md": "results --markdown --tag dispute",
    "docs/results.md": "results --markdown",
    "docs/robustness.md": "results/robust --attacks",
}


@pytest.mark.parametrize("path", TABLES)
def test_tables_are_made_from_the_committed_records(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main.main(["report", *shlex.split(TABLES[path])]) == 0
    text = (ROOT / path).read_text()
    assert groups_table.update_between_markers(text, capsys.readouterr().out) == text, (
        f"say perturblab report {TABLES[path]} --into {path}"
    )


@pytest.mark.parametrize("line", calls())
def test_commands_parse(line: str) -> None:
    args = parse(main._parser(), shlex.split(line))
    if args.command in ("train", "describe"):
        validated(TrainConfig, select_fields(args, TrainConfig))


def test_make_targets_exist() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert named >= {"demo", "test", "check", "test-slow"}
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_catalogue_is_as_large_as_is_said() -> None:
    without = sum(published.figure.value is None for published in FIGURES.values())
    assert (
        f"{len(FIGURES) - without} published figures, {without} results without one, {len(CLAIMS)} claims"
        in " ".join(README.split())
    )


def test_tree_names_every_room_and_every_module_outside_them() -> None:
    (tree,) = blocks(README, "")
    package = Path(perturblab.__file__).parent
    there = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    there |= {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    named = set(re.findall(r"[a-z_]+\.py|(?<=── )[a-z]+/", tree.split("tests/")[0]))
    assert named == there
    assert all((ROOT / name).exists() for name in re.findall(r"^[a-zA-Z]\S+", tree, re.MULTILINE))


def test_first_screen_has_no_long_lines() -> None:
    assert [
        line for line in README.splitlines() if len(line) > 130 and "|" not in line and "Accuracy:" not in line
    ] == []
