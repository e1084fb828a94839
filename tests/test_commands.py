"""The published training commands, as printed: parsed, resolved, built with the published counts, two steps taken.

The list below is a copy of what the source documents print; where they are at hand, it is checked against them.
"""

import gc
import os
import re
import resource
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from perturblab import data
from perturblab.cli import main
from perturblab.cli.arguments import parse, select_fields
from perturblab.data import ImageData, Split
from perturblab.layers import Masks
from perturblab.models import NETS, Task, describe
from perturblab.records.config import TrainConfig, validated
from perturblab.runs import checkpoint
from perturblab.runs.build import build_net, freeze, make_recipe, net_options
from perturblab.system import exit_codes
from perturblab.training.loop import make_optimizer, start
from told import in_order

CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905
DATA = "--dataset-test 'CIFAR10' --dataset-train 'CIFAR10'"


@dataclass(frozen=True)
class Published:
    """A command as printed, and what it must come to on CIFAR-10 (10 classes, 3x32x32).

    Args:
        name: the number of the experiment.
        net: the net of the line.
        rest: what the line gives after net and data.
        counts: trainable and frozen values, values of masks, multiplications of an image.
        code: the published code that is meant.
    """

    name: str
    net: str
    rest: str
    counts: tuple[int, int, int, int]
    code: str = "kl"

    @property
    def line(self) -> str:
        return f"python main.py --net-type '{self.net}' {DATA} {self.rest}"

    @property
    def argv(self) -> list[str]:
        """A user's words: ``perturblab train`` for ``python main.py``, with the code unless it is ``kl``."""
        return ["train", *flags(self.line), *(["--code", self.code] if self.code != "kl" else [])]

    @property
    def said(self) -> dict[str, Any]:
        """Read the flags besides net, data, batch and rate, without the parser under test."""
        found = re.findall(r"--(no-)?([a-z]\S*)(?: (?!--)(\S+))?", self.rest)
        values = {name.replace("-", "_"): yaml.safe_load(value) if value else not no for no, name, value in found}
        return {name: value for name, value in values.items() if name not in ("batch_size", "learning_rate")}


def flags(line: str) -> list[str]:
    """The flags of a command line; in one of the documents the script's name is missing."""
    words = shlex.split(line)
    assert words[0] == "python"
    return words[2:] if words[1] == "main.py" else words[1:]


WIDE, ADAM = "--nfilters 128 --batch-size 16 --learning-rate 1e-3", "--level 0.1 --optim-method Adam --nepochs 450"
NARROW, NONE = "--nfilters 128 --batch-size 10 --learning-rate 1e-4", "--first_filter_size 0 --filter_size 0"
FIRST3 = "--first_filter_size 3 --filter_size 0 --nmasks 64"
N, P = "noiseresnet18", "perturb_resnet18"
COMMANDS = [
    Published("K1", "resnet18", "--nfilters 44 --batch-size 10 --learning-rate 1e-3", (5_284_982, 0, 0, 262_905_280)),
    Published("K2", N, f"{NARROW} --first_filter_size 7", (5_640_074, 0, 68_608, 26_322_944)),
    Published("K4", P, f"{WIDE} --first_filter_size 3 --filter_size 1", (5_611_146, 0, 0, 347_482_112)),
    Published("K5", P, f"{WIDE} {NONE} --nmasks 1", (5_608_202, 0, 1_100_800, 344_336_384)),
    Published("K6", P, f"{WIDE} {FIRST3} --unique_masks --mix_maps", (6_813_834, 0, 70_254_592, 533_080_064)),
    Published("K7", P, f"{WIDE} {FIRST3} --no-unique_masks", (1_220_234, 0, 412_672, 113_649_664)),
    Published("K8", P, f"{WIDE} {FIRST3} --no-unique_masks --train_masks", (1_632_906, 0, 412_672, 113_649_664)),
    Published("A1", N, f"{NARROW} --first_filter_size 3 {ADAM}", (5_621_258, 3_456, 1_097_728, 347_482_112), "up"),
    Published(
        "A2",
        P,
        f"--nfilters 256 --batch-size 20 --learning-rate 1e-4 {NONE} --nmasks 1 {ADAM}",
        (23_546_122, 0, 6_127_616, 2_583_711_744),
        "up",
    ),
]
EVERY = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
# What the reproduction's main.py means where a flag is not given; the reply's has the same.
NET_DEFAULTS: dict[str, Any] = {
    **{"nfilters": 64, "nmasks": 1, "unique_masks": True, "train_masks": False, "mix_maps": False, "use_act": False},
    **{"level": 0.5, "scale_noise": 1.0, "noise_type": "uniform", "act": "relu", "pool_type": "max", "filter_size": 0},
}
CONTROLS = {
    **{"constant_masks": False, "redraw_masks": "never", "untied_bias": False, "mask_memory": "fp32"},
    **{"operator": "noise", "first_masks": 0, "first_sigmoid": False, "first_mix": False},
}


def config_of(argv: list[str]) -> TrainConfig:
    """Exactly what the command line does with these words."""
    return validated(TrainConfig, select_fields(parse(main._parser(), argv), TrainConfig))


# --- parsing and defaults -----------------------------------------------------------------------------------------


@EVERY
def test_every_flag_is_taken_as_printed(command: Published) -> None:
    config = config_of(command.argv)
    words = flags(command.line)
    given_flags = {word.lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    expected = {name.removeprefix("no_") for name in given_flags} | ({"code"} if command.code != "kl" else set())
    assert config.model_fields_set == expected
    rate, batch = (words[words.index(flag) + 1] for flag in ("--learning-rate", "--batch-size"))
    assert (config.net_type, config.dataset_train, config.dataset_test, config.learning_rate, config.batch_size) == (
        words[words.index("--net-type") + 1],
        "CIFAR10",
        "CIFAR10",
        float(rate),
        int(batch),
    )
    assert {name: getattr(config, name) for name in command.said} == command.said


@EVERY
@pytest.mark.parametrize("turned", [("-", "_"), ("_", "-")], ids=["underscores", "dashes"])
def test_both_spellings_are_one_command(command: Published, turned: tuple[str, str]) -> None:
    def spell(word: str) -> str:
        no = "--no-" if word.startswith("--no-") else "--"
        return no + word.removeprefix(no).replace(*turned) if word.startswith("--") else word

    assert config_of([spell(word) for word in command.argv]) == config_of(command.argv)


@EVERY
def test_every_option_of_the_net_is_resolved(command: Published) -> None:
    config = config_of(command.argv)
    warned: list[str] = []
    options = net_options(config, warned.append)
    expected = {name: command.said.get(name, value) for name, value in (NET_DEFAULTS | CONTROLS).items()}
    expected |= {"code": command.code, "first_filter_size": command.said.get("first_filter_size", 0)}
    assert options == {name: expected[name] for name in options}
    assert "level" in options or config.net == "resnet18"
    assert not warned


@EVERY
def test_recipe_is_the_published_one(command: Published) -> None:
    config = config_of(command.argv)
    recipe = make_recipe(config, "CIFAR10")
    adam = command.said.get("optim_method") == "Adam"
    assert asdict(recipe) == {
        "nepochs": 450 if adam else 150,
        "batch_size": config.batch_size,
        "optimizer": "Adam" if adam else "SGD",
        "learning_rate": config.learning_rate,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "betas": (0.9, 0.999),
        "schedule": command.code,
        "dataset": "CIFAR10",
        "drop_last": False,
        "seed": 1,
        "precision": "fp32",
    }
    optimizer = make_optimizer(torch.nn.Linear(2, 2), recipe)
    (group,) = optimizer.param_groups
    assert type(optimizer) is (torch.optim.Adam if adam else torch.optim.SGD)
    assert (group["lr"], group["weight_decay"]) == (config.learning_rate, 1e-4)
    assert group["betas"] == (0.9, 0.999) if adam else (group["momentum"], group["nesterov"]) == (0.9, True)


# --- the net ------------------------------------------------------------------------------------------------------


@EVERY
def test_describe_says_the_same(command: Published, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["describe", *command.argv[1:]]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    last = said.out.splitlines()[-1]
    for count, text in zip(command.counts, ("trainable", "frozen", "mask values", "MACs an image"), strict=True):
        assert f"{count:,} {text}" in last


def test_reply_commands_mean_other_nets_without_their_code() -> None:
    for command in COMMANDS:
        if command.code == "up":
            plain = config_of(["train", *flags(command.line)])
            with torch.device("meta"):
                found = describe(build_net(plain, Task(), seed=1), Task())
            assert (found["trainable"], found["frozen"]) != command.counts[:2]


# --- two steps ----------------------------------------------------------------------------------------------------


def images(count: int) -> Split:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.arange(count) % 10)


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[str]], dict[str, Any]]:
    """Run a command on two batches of random images until two steps are done; its checkpoint."""

    def load(name: str, **_: Any) -> ImageData:
        assert name == "CIFAR10"
        train, test = images(40), images(10)
        return ImageData("CIFAR10", "CIFAR-10", CIFAR10, train, test, {"train": "-", "test": "-"})

    def run(argv: list[str]) -> dict[str, Any]:
        folder, asked = tmp_path / "run", iter((False, True))
        threads = ["--nthreads", str(torch.get_num_threads())]
        assert main.main([*argv, "--out", str(folder), *threads], stop=lambda: next(asked)) == exit_codes.INTERRUPTED
        return checkpoint.load_checkpoint(folder / "checkpoint.pt")

    monkeypatch.setattr(data, "load", load)
    return run


def check_two_steps(argv: list[str], saved: dict[str, Any]) -> None:
    """Two steps were taken: what is trained has moved and is finite, what is fixed is bit for bit as built."""
    config = config_of(argv)
    assert (saved["state"]["epoch"], saved["state"]["step"]) == (0, 2)
    assert saved["state"]["reached"]["images"] == 2 * config.batch_size
    before = build_net(config, Task(), seed=config.manual_seed)
    freeze(config, before)
    assert set(saved["model"]) == set(before.state_dict())
    parameters = dict(before.named_parameters())
    masks = {f"{name}.stored" for name, module in before.named_modules() if isinstance(module, Masks)}
    assert bool(masks & parameters.keys()) == bool(config.train_masks)
    fixed = masks - parameters.keys()
    for name, value in before.state_dict().items():
        after = saved["model"][name]
        assert after.isfinite().all(), name
        if name not in parameters:
            continue
        if parameters[name].requires_grad:
            # A bias before a batch norm has no gradient, and its weight decay can round to nothing.
            assert value.ndim == 1 or not torch.equal(after, value), name
        else:
            assert torch.equal(after, value), name
    assert all(torch.equal(saved["model"][name], value) for name, value in before.state_dict().items() if name in fixed)
    del before
    groups = saved["state"]["optimizer"]["param_groups"]
    assert len(groups) == 1
    assert len(groups[0]["params"]) == sum(p.requires_grad for p in parameters.values())


@EVERY
def test_two_steps_of_a_narrow_net(
    command: Published, two_steps: Callable[[list[str]], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*command.argv, "--nfilters", "6"]
    saved = two_steps(argv)
    check_two_steps(argv, saved)
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(in_order("data CIFAR-10 40 training 0 validation 10 test"), said.err)
    assert re.search(in_order("epoch 1 step 2 ; perturblab train --resume"), said.err)


def _memory() -> float:
    """Physical memory in GiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _peak() -> float:
    """The most that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@pytest.mark.slow
@pytest.mark.skipif(_memory() < 15, reason="NOT TESTED AT FULL WIDTH: 64 masks a channel need 15 GiB of memory")
@EVERY
def test_two_steps_at_full_width(command: Published, two_steps: Callable[[list[str]], dict[str, Any]]) -> None:
    saved = two_steps(command.argv)
    check_two_steps(command.argv, saved)
    assert sum(v.numel() for k, v in saved["model"].items() if k.endswith("masks.stored")) == command.counts[2]
    del saved
    gc.collect()
    assert _peak() < 12  # measured: 10


def test_two_optimiser_steps_follow_the_gradient() -> None:
    """The real step of the real recipe: one SGD step with Nesterov momentum by hand."""
    config = config_of(COMMANDS[0].argv)
    net = torch.nn.Linear(3, 2, bias=False)
    state = start(net, make_recipe(config, "CIFAR10"))
    before, gradient = net.weight.detach().clone(), torch.full((2, 3), 0.5)
    net.weight.grad = gradient.clone()
    state.optimizer.step()
    decayed = gradient + 1e-4 * before
    torch.testing.assert_close(net.weight.detach(), before - 1e-3 * (decayed + 0.9 * decayed))


# --- the documents ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """Find what a source document prints: whole command lines, and other lines that name a net."""

    whole: frozenset[str]
    prose: tuple[str, ...]


def normal(line: str) -> str:
    """One space between words, no Markdown quotes, the script's name left out."""
    text = " ".join(line.strip().strip("`").split())
    return re.sub(r"^python( main\.py)?(?= )", "", text).strip()


def read(path: Path) -> Document:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if re.search("--net[-_]type", line)]
    whole = [line for line in lines if line.strip().strip("`").startswith("python ")]
    return Document(frozenset(map(normal, whole)), tuple(line for line in lines if line not in whole))


@pytest.fixture(scope="session")
def documents(shared: Path) -> dict[str, Document]:
    paths = [path for path in sorted((shared / "seeds").glob("*.txt")) if path.name[:3] in ("000", "001", "002", "003")]
    if len(paths) != 4:
        pytest.skip(f"NOT CHECKED AGAINST THE DOCUMENTS: {shared / 'seeds'} holds {len(paths)} of 4")
    return {path.name[:3]: read(path) for path in paths}


OURS = {command.name: normal(command.line) for command in COMMANDS}


@pytest.mark.shared_data
@pytest.mark.parametrize("number", ["000", "001", "002"])
def test_list_is_what_the_reproduction_prints(documents: dict[str, Document], number: str) -> None:
    assert documents[number].whole == {OURS[name] for name in ("K1", "K2", "K4", "K5", "K6", "K7", "K8")}


@pytest.mark.shared_data
def test_list_is_what_the_reply_prints(documents: dict[str, Document], shared: Path) -> None:
    assert documents["003"].whole == {OURS["A2"]}
    (path,) = (shared / "seeds").glob("003*.txt")
    lines = path.read_text(encoding="utf-8").splitlines()
    (torn,) = [" ".join(line.split()) for line in lines if "--nepochs" in line and "--net-type" not in line]
    assert len(torn) > 50
    assert OURS["A1"].endswith(torn)


@pytest.mark.shared_data
def test_list_has_nothing_of_its_own(documents: dict[str, Document]) -> None:
    printed = set().union(*(document.whole for document in documents.values()))
    assert set(OURS.values()) - printed == {OURS["A1"]}  # the torn one


@pytest.mark.shared_data
def test_prose_names_only_flags_and_nets_that_are_there(documents: dict[str, Document], shared: Path) -> None:
    prose = [line for document in documents.values() for line in document.prose]
    assert prose
    snippets = [text for line in prose for text in re.findall(r"`(--[^`]+)`", line)]
    assert len(snippets) >= 4
    for snippet in snippets:
        assert config_of(["train", *shlex.split(snippet)]).net in NETS
    texts = [path.read_text(encoding="utf-8") for path in sorted((shared / "seeds").glob("00[0-3]*.txt"))]
    named = set(re.findall(r"--[a-z][a-zA-Z_-]*", "\n".join(texts)))
    assert len(named) > 15
    trained = next(a for a in main._parser()._actions if a.dest == "command").choices
    assert isinstance(trained, dict)
    assert named <= set(trained["train"]._option_string_actions)
