"""The catalogue: complete, unique, runnable, counted, and equal to what was published."""

import doctest
import math
import re
import shlex
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from perturblab.cli import arguments, main
from perturblab.layers import Masks
from perturblab.models import Task, build, describe
from perturblab.records.attack_names import ATTACK_KINDS
from perturblab.records.config import TrainConfig, validated
from perturblab.runs.build import build_net, make_recipe, net_options
from perturblab.runs.defence import check_defence, make_adversary, make_mixings
from perturblab.studies import catalogue
from perturblab.studies.catalogue import CLAIMS, FIGURES, KINDS, METRICS, MODES, SETUPS, Measure, PublishedFigure, Setup
from perturblab.studies.catalogue.types import Figure

RUNNABLE = [setup for setup in SETUPS.values() if not setup.missing]
runnable = pytest.mark.parametrize("setup", RUNNABLE, ids=lambda setup: setup.id)
IMAGES = {"MNIST": (1, 28, 28), "CIFAR10": (3, 32, 32), "SVHN": (3, 32, 32)}


def quiet(text: str) -> None:
    """A published command may carry --dropout, which is warned of."""
    assert "--dropout" in text


def config_of(setup: Setup) -> TrainConfig:
    return validated(TrainConfig, dict(setup.flags))


def task_of(setup: Setup, config: TrainConfig) -> Task:
    channels, *size = setup.image or IMAGES[config.dataset_train]
    return Task(len(config.classes or range(10)), channels, (size[0], size[1]))


@cache
def counted(net: str, options: tuple[tuple[str, Any], ...], task: Task) -> tuple[int, int]:
    """Count trainable parameters and values of masks."""
    with torch.device("meta"):
        built = build(net, task=task, **dict(options))
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    masks = [module for module in built.modules() if isinstance(module, Masks)]
    return sum(map(torch.Tensor.numel, trained)), sum(math.prod(module.shape) for module in masks)


def test_an_id_given_twice_cannot_be_overlooked() -> None:
    with pytest.raises(ValueError, match=r"K4 .*twice"):
        catalogue.index_by_id([SETUPS["K4"], SETUPS["K5"], SETUPS["K4"]])


def test_ids_are_fit_for_folders_and_for_typing() -> None:
    for name in (*SETUPS, *FIGURES, *CLAIMS):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name), name
    assert all(name.startswith("R-") for name in CLAIMS)
    assert all(SETUPS[name].id == name for name in SETUPS)


@runnable
def test_flags_are_a_run(setup: Setup) -> None:
    config = config_of(setup)
    net_options(config, quiet)
    check_defence(config)
    make_recipe(config, config.dataset_train)
    adversary = make_adversary(config, config.dataset_train)
    assert (adversary is not None) == (config.defence in ("fgsm", "fgsm-half"))
    if config.defence == "batchout":
        with torch.device("meta"):
            net = build_net(config, task_of(setup, config), seed=1, warn=quiet)
        assert make_mixings(config, net)


@runnable
def test_counts_are_those_of_the_built_net(setup: Setup) -> None:
    config = config_of(setup)
    options = tuple(sorted(net_options(config, quiet).items()))
    assert (setup.parameters, setup.masks) == counted(config.net, options, task_of(setup, config))


def test_every_net_takes_its_images() -> None:
    """A forward pass of one set-up for each net and size of images, which are counted then as they are described."""
    one_a_kind = {(config_of(setup).net, task_of(setup, config_of(setup))): setup for setup in RUNNABLE}
    assert len(one_a_kind) > 10
    for (net, task), setup in one_a_kind.items():
        with torch.device("meta"):
            said = describe(build(net, task=task, **net_options(config_of(setup), quiet)), task, net)
        assert (said["trainable"], said["masks"]) == (setup.parameters, setup.masks), setup.id


@pytest.mark.parametrize("setup", [s for s in SETUPS.values() if s.command], ids=lambda setup: setup.id)
def test_command_parses_and_means_the_flags(setup: Setup) -> None:
    published = setup.command.startswith("python main.py ")
    assert published or setup.command.startswith("perturblab train ")
    words = shlex.split(setup.command.replace("python main.py", "perturblab train"))[1:]
    given = arguments.select_fields(arguments.parse(main._parser(), words), TrainConfig)
    if setup.missing:
        return
    # The name of a code says which of three programs "main.py" was; P3 was read off after 80 of its 500 epochs.
    unsaid = {"code", *(["nepochs"] if setup.id == "P3" else [])} if published else set()
    flags = {name: value for name, value in setup.flags.items() if name not in unsaid}
    assert validated(TrainConfig, given) == validated(TrainConfig, flags)


def test_set_ups_that_cannot_run_say_why_and_no_other_is_idle() -> None:
    for setup in SETUPS.values():
        assert setup.about
        if setup.missing:
            assert not setup.flags
            assert setup.parameters is None
        else:
            assert setup.command
            assert setup.flags["dataset_train"] in IMAGES
    used = {published.setup for published in FIGURES.values()}
    used |= {side for claim in CLAIMS.values() for side in (claim.left, claim.right)}
    assert set(SETUPS) == used - {""}


def test_no_run_is_made_twice() -> None:
    """K3-dropout is the one twin: the flag is read by no net."""
    seen = Counter(config_of(setup).model_copy(update={"dataset_test": None}).model_dump_json() for setup in RUNNABLE)
    assert max(seen.values()) == 1
    plain, twin = (net_options(config_of(SETUPS[name]), quiet) for name in ("K3", "K3-dropout"))
    assert plain == twin


def check_measure(measure: Measure) -> None:
    assert measure.metric in METRICS, measure
    assert measure.mode in MODES
    assert (measure.attack != "") == (measure.metric == "attack")
    assert measure.attack in ("", *ATTACK_KINDS)
    assert measure.eps > 0 or not measure.attack
    assert measure.norm == "l2" if measure.attack == "deepfool" else measure.norm in ("linf", "l2")
    assert measure.attack == "pgd" or not measure.steps


def test_entries_are_whole() -> None:
    for name, published in FIGURES.items():
        figure = published.figure
        assert figure.kind in KINDS, name
        assert (figure.value is None) == (figure.kind == "no figure"), name
        assert figure.value is None or 0 <= figure.value <= 100, name
        assert figure.text, name
        assert published.setup == "" or published.setup in SETUPS, name
        assert published.about, name
        assert "https://" in published.source or "ICVGIP" in published.source, name
        assert published.tags, name
        check_measure(published.measure)
        if figure.kind in ("batch mean", "batch mean, truncated", "smoothed") and published.setup:
            assert published.measure.metric == figure.kind, name
        if "normalised" in name.split("-")[-2:] and published.measure.attack:
            assert published.measure.attack == "fgsm-normalised", name


def test_relations_are_whole() -> None:
    for claim in CLAIMS.values():
        assert claim.text.endswith("."), claim.id
        assert claim.source
        assert claim.tags
        assert bool(claim.left) == bool(claim.right or claim.rivals)
        assert not (claim.right and claim.rivals)
        assert claim.left or claim.how, claim.id
        assert {claim.left, claim.right, *claim.rivals} <= {*SETUPS, ""}, claim.id
        assert claim.left not in claim.rivals
        assert claim.left != claim.right or claim.right_measure or not claim.left
        if claim.low is not None and claim.high is not None:
            assert claim.low <= claim.high
        check_measure(claim.measure)
        check_measure(claim.right_measure or claim.measure)


# What the two fact sheets hold, for where they are not at hand: rows, and figures by table.
ROWS = """
P1 P2 P3 K0 K1 K2 K3 K4 K5 K6 K7 K8 K9 H1 H2 H3 H4 H5 H6 H7 A1 A2 A3 U1 U2 U3 L1 L2 L3
"""
TABLES = {
    "text": 6,
    "fig2": 30,
    "fig3": 30,
    "fig4b": 14,
    "fig5a": 20,
    "fig5b": 10,
    "r2": 35,
    "seed": 19,
    "r1-fgsm": 150,
    "r1-normalised": 74,
    "r1-pgd": 103,
}
PLACES = {
    "3.1": ("text",),
    "3.2": ("fig2", "fig3", "fig4b", "fig5a", "fig5b"),
    "3.3": ("r2",),
    "3.4": ("seed",),
    "3.5": ("r1-fgsm",),
    "3.6": ("r1-normalised",),
    "3.7": ("r1-pgd",),
}


def of_row(row: str) -> list[PublishedFigure]:
    return [published for name, published in FIGURES.items() if name == row or name.startswith(f"{row}-")]


@pytest.mark.parametrize("row", ROWS.split())
def test_every_row_has_its_entries(row: str) -> None:
    assert [published for published in of_row(row) if {"pnn", "lbcnn"} & set(published.tags)]


def test_every_table_has_its_figures() -> None:
    found = Counter(tag for published in FIGURES.values() for tag in published.tags if tag in TABLES)
    assert dict(found) == TABLES


@pytest.fixture(scope="session")
def facts(shared: Path) -> dict[str, str]:
    """The fact sheets by name."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in (shared / "facts").glob("*.md")}
    if not {"pnn", "batchout"} <= set(found):
        pytest.skip("NOT CHECKED AGAINST THE FACT SHEETS: ../shared/facts holds none")
    return found


def section(text: str, heading: str) -> str:
    """Return the text below a heading, down to the next of its rank or a higher one."""
    rank = len(heading.split()[0])
    return re.split(rf"^#{{1,{rank}}} ", text.split(f"\n{heading}", 1)[1], maxsplit=1, flags=re.M)[0]


@pytest.mark.shared_data
def test_every_row_of_the_fact_sheet_has_its_entries(facts: dict[str, str]) -> None:
    table = [line.split("|")[1:-1] for line in section(facts["pnn"], "## 1. ").splitlines() if line.startswith("| ")]
    rows = {cells[0].strip(): cells[5] for cells in table if re.fullmatch(r" [A-Z]\d+ ", cells[0])}
    assert set(rows) == set(ROWS.split())
    for row, claimed in rows.items():
        values = {published.figure.value for published in of_row(row)}
        # The first number of a cell, or its two or three; "85.7 (85.91 until ...)" is one figure with its history.
        numbers = [float(n) for n in re.findall(r"(?<![\d.])\d\d(?:\.\d+)?(?![\d.])", re.sub(r"\(.*?\)", "", claimed))]
        if row not in ("P3", "K9", "L1", "L2"):
            assert set(numbers) <= values, row
    assert {published.figure.value for published in of_row("L1")} == {99.5, 94.5, 93.0}


# Decimals of these sections that are no accuracy: section numbers, radii, and values quoted from other sections.
NO_FIGURES = {
    "3.1": {"6.2", "6.3"},
    "3.2": {"6.6", "80.79", "20.2", "14.4", "10.8", "94.8"},
    "3.4": {"53.0", "48.4"},
    "3.7": {"88.85", "3.5"},
}


@pytest.mark.shared_data
@pytest.mark.parametrize("place", PLACES)
def test_every_figure_of_a_table_is_an_entry(facts: dict[str, str], place: str) -> None:
    body = section(facts["batchout"], f"### {place} ")
    # Error rates became accuracies.
    values = {
        f"{value:.2f}"
        for published in FIGURES.values()
        if published.figure.value is not None and set(PLACES[place]) & set(published.tags)
        for value in (published.figure.value, 100 - published.figure.value)
    }
    numbers = re.findall(r"(?<![\d.])\d*\.\d+(?![\d.])", body)
    assert len(numbers) > 9
    left = {n for n in numbers if float(n) > 1 and f"{float(n):.2f}" not in values}
    assert left <= NO_FIGURES.get(place, set())


def model_of(label: str) -> str:
    """The id of a row of the reproduction's tables."""
    label = label.replace("n=", "").replace("all_middle", "all")
    if row := re.fullmatch(r"(middle|alt|all) (\u2212?)(\.\d+)( C)?", label):
        return f"{row[1]}{'-c' if row[4] else ''}-{'minus-' if row[2] else ''}0{row[3]}"
    return "all-c-random" if label.startswith("all {") else label.replace("random_", "random-")


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.shared_data
def test_every_cell_of_the_reproduction_is_where_it_belongs(facts: dict[str, str]) -> None:
    pixels = ["clean", *(f"fgsm-{n}" for n in range(1, 9)), "l2"]
    steps = ["notes-clean", "notes-fgsm", *(f"notes-pgd-{n}" for n in (10, 50, 200))]
    for place, columns, rows in (("3.5", pixels, 15), ("3.7", steps, 9)):
        table = cells(section(facts["batchout"], f"### {place} "))[1:]
        assert len(table) == rows
        for label, *values in table:
            for column, value in zip(columns, values, strict=True):
                found = FIGURES.get(f"R1-{model_of(label)}-{column}")
                number = re.match(r"[\d.]+", value)
                assert (found and found.figure.value) == (float(number[0]) if number else None), (label, column)


@pytest.mark.shared_data
def test_every_point_of_the_paper_is_where_it_belongs(facts: dict[str, str]) -> None:
    arms = {"baseline": "none", "adv. trained": "fgsm-half", "BatchOut": "batchout"}
    body = section(facts["batchout"], "### 3.2 ")
    for figure, radii in (("2", ("0.1", "0.2", "0.3", "0.4", "0.5")), ("3", ("1", "2", "3", "4", "5"))):
        columns = [*(f"fgsm-{eps}" for eps in radii), *(f"deepfool-{cap}" for cap in range(1, 6))]
        table = cells(body.split(f"**Fig. {figure} ")[1].split("**Fig.")[0])[1:]
        assert len(table) == 3
        for label, *values in table:
            for column, value in zip(columns, [v for v in values if v], strict=True):
                assert FIGURES[f"BO{figure}-{arms[label]}-{column}"].figure.value == float(value)


# id, set-up, value, metric or attack, radius or cap: written by hand.
SPOTS: list[tuple[str, str, float | None, str, float]] = [
    ("K0-smoothed", "K2", 90.53, "smoothed", 0.0),
    ("K0-actual", "K2", 85.91, "batch mean", 0.0),
    ("K4", "K4", 85.5, "batch mean, truncated", 0.0),
    ("K7-mixed", "K7-mixed", 82.4, "batch mean, truncated", 0.0),
    ("H5", "H5", 85.8, "batch mean, truncated", 0.0),
    ("H7", "K7", 84.4, "batch mean, truncated", 0.0),
    ("A1", "A1", 90.35, "batch mean", 0.0),
    ("U1", "A1", 89.38, "batch mean", 0.0),
    ("A3", "", None, "none", 0.0),
    ("L3", "L3", 97.4, "exact", 0.0),
    ("BO-text-cifar-batchout", "BO-cifar-batchout", 80.79, "exact", 0.0),
    ("BO2-none-deepfool-3", "BO-mnist-none", 1.83, "deepfool", 3.0),
    ("BO2-batchout-fgsm-0.1", "BO-mnist-batchout", 96.49, "fgsm", 0.1),
    ("BO3-fgsm-half-fgsm-5", "BO-cifar-fgsm-half", 48.36, "fgsm", 5 / 255),
    ("BO4b-c1f1-fgsm-0.3", "BO-mnist-c1f1", 92.84, "fgsm", 0.3),
    ("BO5a-k0.5-fgsm-0.4", "BO-mnist-batchout", 91.48, "fgsm", 0.4),
    ("BO5b-noise-fgsm-0.4", "BO-mnist-noise", 63.86, "fgsm", 0.4),
    ("R2-all-clean", "BO-mnist-batchout", 96.82, "exact", 0.0),
    ("R2-fgsm-0.4-attacked", "R2-fgsm-0.4", 90.45, "fgsm-unclipped", 0.4),
    ("SEED-cifar3-batchout-train", "SEED-cifar3-batchout", 90.89, "train", 0.0),
    ("R1-middle-minus-0.3-fgsm-5", "R1-middle-minus-0.3", 29.98, "fgsm", 5 / 255),
    ("R1-alt-0.2-l2", "R1-alt-0.2", 47.61, "fgsm", 0.5),
    ("R1-standard-normalised-8", "R1-standard", 32.09, "fgsm-normalised", 8 / 255),
    ("R1-alt-c-0.25-notes-pgd-50", "R1-alt-c-0.25", 27.27, "pgd", 8 / 255),
    ("R1-random-3_-2-autoattack", "R1-random-3_-2", 0.80, "autoattack", 8 / 255),
]


@pytest.mark.parametrize(("name", "setup", "value", "what", "eps"), SPOTS, ids=[spot[0] for spot in SPOTS])
def test_spots(name: str, setup: str, value: float | None, what: str, eps: float) -> None:
    published = FIGURES[name]
    measure = published.measure
    assert (published.setup, published.figure.value, measure.attack or measure.metric) == (setup, value, what)
    assert measure.eps == pytest.approx(eps)


def test_an_error_stands_beside_accuracies_as_one() -> None:
    assert FIGURES["R2-all-clean"].figure.wording == "3.18 % error, 96.82 % right"
    assert Figure(None, "no figure", "error not said").wording == "error not said"


def test_published_mistakes_are_said() -> None:
    assert FIGURES["R2-c1-clean"].measure.mode == "batchout-in-eval"
    assert FIGURES["R2-all-unclipped-0.3"].measure == Measure("attack", "fgsm-unclipped", 0.3, mode="batchout-in-eval")
    assert FIGURES["R1-alt-0.3-notes-pgd-10"].measure.mode == "step eps/30"
    assert FIGURES["SEED-cifar10-none-fgsm-normalised"].figure == FIGURES["SEED-cifar10-none-fgsm"].figure
    assert any("trained" in doubt for doubt in FIGURES["K8"].doubts)
    assert any("VGG19" in doubt for doubt in SETUPS["R1-alt-0.3"].doubts)


@pytest.mark.parametrize(
    ("name", "left", "right", "low", "high"),
    [
        ("R-gap", "K1", "K3", 4.0, 6.0),
        ("R-noise", "H5", "K4", None, 1.0),
        ("R-noise-A1", "A1", "A1-level-0", None, 1.0),
        ("R-A1-1x1", "A1-order", "A1-1x1", None, 1.0),
        ("R-A1-over-1x1", "A1", "A1-1x1", None, 1.0),
        ("R-trained-masks", "K8", "K7", 3.5, 3.5),
        ("R-first-3x3", "K3", "K2", 0.5, 0.5),
        ("R-fanout", "H6", "H5", None, 0.0),
        ("R-width", "U2", "A1", 0.0, None),
        ("R-use-act", "K5-use-act", "K5", None, 0.0),
        ("R-batchout-fgsm-training", "BO-cifar-batchout", "BO-cifar-fgsm-half", 0.0, None),
        ("R-resnet-none", "SEED-cifar10-none", "BO-cifar-none", None, 0.0),
    ],
)
def test_spots_of_relations(name: str, left: str, right: str, low: float | None, high: float | None) -> None:
    found = CLAIMS[name]
    assert (found.left, found.right, found.low, found.high) == (left, right, low, high)


def test_the_ladders_reach_from_one_recipe_to_the_other() -> None:
    """One flag at a time in the ladder from experiment 3; what differs at its ends is what the steps change."""
    path = ["K3", "K3-adam", "K3-adam-level", "K3-adam-level-schedule", "A1-learned", "A1"]
    configs = [config_of(SETUPS[name]).model_dump() for name in path]
    changed = [{key for key in a if a[key] != b[key]} for a, b in pairwise(configs)]
    # The reply's code means its schedule and a frozen first convolution at once.
    assert changed == [{"optim_method"}, {"level"}, {"optimizer_schedule"}, {"nepochs"}, {"code", "optimizer_schedule"}]
    for name in ("level-0", "untied", "constant", "redraw-train", "redraw-always", "sgd"):
        given = SETUPS[f"A1-{name}"].flags
        assert len({*given.items()} ^ {*SETUPS["A1"].flags.items()}) in (1, 2)


@cache
def costs(name: str, width: float) -> tuple[int, int]:
    """Trainable parameters and multiplications of a set-up at a fraction of its width."""
    config = config_of(SETUPS[name])
    options = {**net_options(config, quiet), "nfilters": int(width * (config.nfilters or 0))}
    with torch.device("meta"):
        said = describe(build(config.net, **options), Task(), config.net)
    return said["trainable"], said["macs"]


# Set-up: what the operator adds for every value of a mask (multiplications) and for every channel that had one.
PER_VALUE = {"shift": (0, 0), "frozen-depthwise": (9, 0), "depthwise": (9, 9)}


@pytest.mark.parametrize("width", [1, 1 / 8])
@pytest.mark.parametrize("name", PER_VALUE)
def test_other_operators_are_matched_to_the_replys_net(name: str, width: float) -> None:
    """Within 3 % at the published width, and at any width to the unit what nine values a channel cost."""
    macs_a_value, parameters_a_channel = PER_VALUE[name]
    (parameters, macs), (ours, our_macs) = (costs(setup, width) for setup in ("A1", f"A1-{name}"))
    values, channels = (int(width * (SETUPS[setup].masks or 0)) for setup in ("A1", "A1-constant"))
    assert our_macs - macs == macs_a_value * values
    assert ours - parameters == parameters_a_channel * channels
    if width == 1:
        assert (ours, our_macs) == pytest.approx((parameters, macs), rel=0.03)
    doubts = " ".join(SETUPS[f"A1-{name}"].doubts)
    assert our_macs == macs or f"{100 * (our_macs - macs) / our_macs:.1f} %" in doubts
    assert ours == parameters or f"{100 * (ours - parameters) / parameters:.1f} %" in doubts


def test_dense_frozen_filters_are_matched_in_parameters_alone() -> None:
    for width in (1, 1 / 8):
        assert costs("A1-frozen-3x3", width)[0] == costs("A1", width)[0]
    times = costs("A1-frozen-3x3", 1)[1] / costs("A1", 1)[1]
    assert f"{times:.1f} times" in SETUPS["A1-frozen-3x3"].doubts[0]


def test_channels_exchange_through_the_shortcuts() -> None:
    """R-no-exchange is false: within the first stage a channel sees itself alone, after the second it sees all."""
    flags: dict[str, Any] = {"nfilters": 6, "first_filter_size": 3, "nmasks": 4, "unique_masks": False}
    net = build("perturb_resnet18", task=Task(10, 3, (8, 8)), **flags).eval()
    x = torch.rand(1, 6, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first = net.get_submodule("layer1")(x)
    second = net.get_submodule("layer2")(first)
    for out, most in ((first, 1), (second, 6)):
        (gradient,) = torch.autograd.grad(out[0, 0].sum(), x, retain_graph=True)
        assert 0 < int((gradient.abs().amax((0, 2, 3)) > 0).sum()) <= most
    assert int((gradient.abs().amax((0, 2, 3)) > 0).sum()) == 6


def test_find_by_tag() -> None:
    assert {item.id for item in catalogue.find("up")} == {"A1", "A2", "A3", "U1", "U2", "U3"}
    both = catalogue.find("MNIST, attack")
    assert both
    assert all({"mnist", "attack"} <= set(item.tags) for item in both)
    assert CLAIMS["R-K3-adam"] in catalogue.find("ladder")
    with pytest.raises(ValueError, match=r"'batchuot'.*batchout\?"):
        catalogue.find("batchuot")


def test_example_of_the_docstring() -> None:
    result = doctest.testmod(catalogue)
    assert (result.attempted, result.failed) == (3, 0)
