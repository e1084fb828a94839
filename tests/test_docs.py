"""The documents: every Python block runs and prints its promise, links lead somewhere, public names exist."""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from torch import nn

import perturblab
import perturblab.layers
from builders import API, DOCS, ROOT, listed
from perturblab.cli import main
from perturblab.layers import Masks
from snippets import blocks, commands, executed, promised

DOCUMENTS = [*DOCS, ROOT / "README.md"]
ids = {"ids": lambda path: path.name}


def test_there_are_documents() -> None:
    assert {path.name for path in DOCS if blocks(path.read_text(), "python")} >= {
        *("api.md", "surgery.md", "formats.md", "guide.md"),
        *("perturb.md", "lbc.md", "batchout.md"),
    }


@pytest.mark.parametrize("path", DOCUMENTS, **ids)
def test_every_python_block_runs_and_prints_what_it_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the blocks in order, in one namespace, in a folder that has the document's run."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    trained = [line for line in commands(text) if line.startswith("perturblab train") and line.endswith("--out RUN")]
    if path.name == "formats.md":
        assert len(trained) == 1
        pytest.importorskip(
            "tensorboard", reason="tensorboard is not installed (extra tb): the document's run needs it"
        )
        assert main.main(shlex.split(trained[0])[1:]) == 0
        capsys.readouterr()
    names: dict[str, Any] = {}
    for block in blocks(text, "python"):
        printed = executed(block, names, path.name)
        assert printed[: len(promised(block))] == promised(block)


@pytest.mark.parametrize("path", DOCUMENTS, **ids)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


GUIDES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PLACES = (ROOT, ROOT / "src" / "perturblab", ROOT / "tests")


@pytest.mark.parametrize("path", [*GUIDES, *DOCS], **ids)
def test_files_of_code_named_in_a_document_exist(path: Path) -> None:
    """A path is relative to the repository, to the package, or to the folder of the tests."""
    named = re.findall(r"`([\w*/]+\.py|(?:src|tests|docs)/[\w/.]+\.\w+)`", path.read_text())
    assert [name for name in named if "NAME" not in name and not any(list(place.glob(name)) for place in PLACES)] == []


def test_a_comment_behind_or_below_a_print_is_a_promise() -> None:
    block = "print(1)  # 1\nprint(2)\n# 2\n# 3\nx = 1  # no\n# no\nprint(4)\nprint(5)  # 5\n"
    assert promised(block) == ["1", "2", "3", "5"]


# --- the public interface --------------------------------------------------------------------------------------------


PUBLIC = [(module, name) for module, names in listed().items() for name in names]


def thing(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("package", ["layers", "models", "data", "attacks", "training", "records"])
def test_the_list_is_complete(package: str) -> None:
    name = f"perturblab.{package}"
    assert sorted(listed()[name]) == sorted(importlib.import_module(name).__all__)


def imported(text: str) -> set[tuple[str, str]]:
    """Find what the Python blocks of a document import from the package: pairs of module and name."""
    nodes = [node for block in blocks(text, "python") for node in ast.walk(ast.parse(block))]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {(node.module, alias.name) for node in froms for alias in node.names if node.module.startswith("perturblab")}


@pytest.mark.parametrize("path", DOCUMENTS, **ids)
def test_documents_import_public_names_only(path: Path) -> None:
    assert imported(path.read_text()) <= set(PUBLIC)


def test_readme_names_public_modules_only() -> None:
    named = set(re.findall(r"`(perturblab\.[\w.]+)`", (ROOT / "README.md").read_text()))
    assert (
        {"perturblab.layers", "perturblab.attacks", "perturblab.training", "perturblab.records"}
        <= named
        <= set(listed())
    )


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_what_is_public_is_documented_and_typed(module: str, name: str) -> None:
    value = thing(f"{module}.{name}")
    if isinstance(value, dict | tuple) or typing.get_origin(value):  # a table, or the type of a function
        return
    assert inspect.getdoc(value), f"{name} has no docstring"
    for function in [value] if inspect.isfunction(value) else [value.__init__]:
        if getattr(function, "__module__", "").startswith("perturblab"):
            function = inspect.unwrap(function)
            hints = typing.get_type_hints(
                function, {**vars(importlib.import_module(function.__module__)), "pandas": pandas}
            )
            missing = set(inspect.signature(function).parameters) - set(hints) - {"self"}
            assert not missing, f"{name} does not say what {missing} are"


def test_functions_on_tensors_give_their_shapes() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.+) \|$", API.split("layers: functions")[1].split("###")[0], re.MULTILINE
    )
    assert len(rows) > 8
    for name, takes, _ in rows:
        if "(N" in takes:
            assert "(N" in (inspect.getdoc(thing(f"perturblab.layers.{name}")) or ""), name


# --- the cards -------------------------------------------------------------------------------------------------------

CARDS = sorted((ROOT / "docs" / "cards").glob("*.md"))


def parts(card: Path) -> dict[str, str]:
    return dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", card.read_text(), re.MULTILINE))


def hints(layer: type) -> dict[str, Any]:
    """Find the settings of a layer: type by name. A layer without settings has PyTorch's constructor."""
    if layer.__init__ is nn.Module.__init__:
        return {}
    return {name: hint for name, hint in typing.get_type_hints(layer.__init__).items() if name != "return"}


def settings_of(layer: type) -> Iterator[type]:
    """Yield the frozen settings that a layer takes, and those within them."""
    for hint in hints(layer).values():
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield kind
                yield from settings_of(kind)


def layers() -> list[type]:
    """List every public layer, and the settings that they take."""
    public = [getattr(perturblab.layers, name) for name in perturblab.layers.__all__]
    found = [thing for thing in public if isinstance(thing, type) and issubclass(thing, nn.Module)]
    return [*found, *sorted({kind for layer in found for kind in settings_of(layer)}, key=lambda kind: kind.__name__)]


def on_card(card: Path) -> list[type]:
    """List the layers and settings that a card names as its interface."""
    return [layer for layer in layers() if f"`{layer.__name__}`" in parts(card)["API"]]


def test_every_card_has_its_parts_in_order() -> None:
    assert {path.stem for path in CARDS} >= {"perturb", "lbc", "batchout"}
    for card in CARDS:
        assert list(parts(card)) == ["How to use", "Settings", "Details", "Source", "API"], card.name


def test_every_layer_and_its_settings_have_one_card() -> None:
    names = [layer.__name__ for layer in layers()]
    assert set(names) >= {"PerturbConv2d", "NoiseLayer", "BatchOut", "Noise", "Mixing", "Magnitude"}
    assert sorted(names) == sorted(layer.__name__ for card in CARDS for layer in on_card(card))


@pytest.mark.parametrize("card", CARDS, **ids)
def test_a_card_lists_every_setting_of_its_layers_and_no_other(card: Path) -> None:
    """A setting of `Noise` in the card of the layers that take it as `noise` may stand as `noise.NAME`."""
    rows = re.findall(r"^\| (`[^|]+`) \|", parts(card)["Settings"], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(?:\w+\.)?(\w+)`", row)]
    assert set(listed) == {name for layer in on_card(card) for name in hints(layer)}


@pytest.mark.parametrize("card", CARDS, **ids)
def test_a_card_shows_its_layers_at_work(card: Path) -> None:
    modules = [layer.__name__ for layer in on_card(card) if issubclass(layer, nn.Module) and layer is not Masks]
    assert modules
    assert [name for name in modules if f"{name}(" not in parts(card)["How to use"]] == []


def test_the_guide_leads_to_every_card() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    assert [card.name for card in CARDS if f"(cards/{card.name})" not in guide] == []
