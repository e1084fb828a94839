"""Training with defences, through whole runs: what the net is trained on, what is left untouched, what is recorded."""

import importlib
import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perturblab import cli, configured, data, execution, layers, records, runs
from perturblab.attacks import Threat
from perturblab.config import TrainConfig, validated
from perturblab.configured import make_adversary, make_mixings
from perturblab.defences import DEFENCES, ActiveBatchOut, Adversary, adversarial_images
from perturblab.errors import UserError
from perturblab.layers import BatchOut, Mixing
from perturblab.models import Task, build
from perturblab.progress import Show
from perturblab.runs import Run
from perturblab.schedules import lr_factor
from perturblab.seeding import stream

QUIET = Show(quiet=True)
# 120 images at 32 are three steps and one of 24.
SMALL: dict[str, Any] = {"train_size": 120, "batch_size": 32, "nepochs": 1, "learning_rate": 0.02}
PAPER: dict[str, Any] = {"net_type": "batchout_mnist", "nfilters": 8, "padding": 2}
NORMED: dict[str, Any] = {"net_type": "lenet", "nfilters": 4}  # with batch norm, which a forward pass moves
ATTACKED = ("fgsm", "fgsm-half", "pgd")


def config(**given: Any) -> TrainConfig:
    net = {} if "net_type" in given else PAPER
    return validated(TrainConfig, {"dataset_train": "digits", **net, **SMALL, **given})


def opened(folder: Path, **given: Any) -> Run:
    return runs.open_run(config(**given), folder, QUIET)


def executed(folder: Path, **given: Any) -> Run:
    run = opened(folder, **given)
    assert execution.execute(run, QUIET) is not None
    return run


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "weights.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def recorded(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return content["config"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures that is recognised as some classes of CIFAR-10, and so is augmented."""
    root, generator = tmp_path_factory.mktemp("data") / "pets", np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 5)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root


# --- what the net is trained on -------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What went into each step: prepared images, what the net was trained on, labels, and the weights it had."""

    clean: list[Tensor] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    before: list[dict[str, Tensor]] = field(default_factory=list)


def watched(run: Run) -> Seen:
    """Execute a run and look at every step."""
    seen, prepare, during = Seen(), run.augmented, run.during
    last: list[Tensor] = []
    run.model.register_forward_pre_hook(lambda model, args: last.append(args[0].clone()))

    def watch_images(images: Tensor, generator: torch.Generator) -> Tensor:
        x = prepare(images, generator)
        seen.clean.append(x.clone())
        seen.before.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return x

    def watch_labels(x: Tensor, y: Tensor, generator: torch.Generator) -> Any:
        seen.labels.append(y.clone())
        return during(x, y, generator)

    def after_step() -> bool:
        seen.given.append(last[-1])
        last.clear()
        return False

    run.augmented, run.during = watch_images, watch_labels  # type: ignore[method-assign]
    assert execution.execute(run, QUIET, after_step) is not None
    return seen


def in_pixels(run: Run, x: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (run.preparation.mean, run.preparation.std)
    )
    return x.double() * std + mean


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("defence", "share", "flags"),
    [
        ("fgsm", 1.0, {}),
        ("fgsm-half", 0.5, {}),
        ("fgsm-half", 0.5, {"precision": "bf16", "defence_mode": "train"}),
        ("pgd", 1.0, {"defence_steps": 3}),
    ],
    ids=str,
)
def test_the_first_rows_are_adversarial_and_the_others_keep_their_bits(
    defence: str, share: float, flags: dict[str, Any], normalise: bool, tmp_path: Path
) -> None:
    run = opened(tmp_path / "run", defence=defence, defence_eps="0.2", normalise=normalise, **flags)
    seen = watched(run)
    assert [len(x) for x in seen.given] == [32, 32, 32, 24]
    for clean, given in zip(seen.clean, seen.given, strict=True):
        count = int(share * len(clean))
        assert torch.equal(given[count:], clean[count:])
        assert given.dtype is torch.float32
        one, other = in_pixels(run, given[:count]), in_pixels(run, clean[:count])
        assert (one - other).abs().amax() <= 0.2 + 1e-6
        assert one.amin() >= -1e-6
        assert one.amax() <= 1 + 1e-6
        moved = (one - other).abs().flatten(1).amax(1)
        assert (moved > 0.19).all(), "every one of these images is attacked"


@pytest.mark.parametrize("defence", ["none", "batchout"])
def test_other_defences_leave_the_images_alone(defence: str, tmp_path: Path) -> None:
    seen = watched(opened(tmp_path / "run", defence=defence))
    assert all(map(torch.equal, seen.clean, seen.given))


@pytest.mark.parametrize("defence", DEFENCES)
def test_labels_and_clean_images_are_those_of_plain_training(defence: str, tmp_path: Path) -> None:
    """Which images, in which order, with which labels: a defence changes none of it."""
    plain, seen = (watched(opened(tmp_path / place, defence=name)) for place, name in (("a", "none"), ("b", defence)))
    assert all(map(torch.equal, plain.clean, seen.clean))
    assert all(map(torch.equal, plain.labels, seen.labels))
    assert len(plain.clean) == len(seen.clean) == 4


def by_hand(net: nn.Module, pixels: Tensor, labels: Tensor, eps: float, run: Run) -> tuple[Tensor, Tensor]:
    """FGSM image by image: I + eps sign(dJ/dI), clipped; and the gradient."""
    images, gradients = [], []
    mean, std = run.preparation.mean[0], run.preparation.std[0]
    for pixel, label in zip(pixels, labels, strict=True):
        image = pixel.clone().requires_grad_()
        loss = cross_entropy(net((image[None] - mean) / std), label[None])
        (gradient,) = torch.autograd.grad(loss, image)
        images.append((pixel + eps * gradient.sign()).clamp(0, 1))
        gradients.append(gradient)
    return torch.stack(images), torch.stack(gradients)


@pytest.mark.parametrize("net", [PAPER, NORMED], ids=lambda net: net["net_type"])
@pytest.mark.parametrize("defence", ["fgsm", "fgsm-half"])
def test_fgsm_training_meets_the_images_of_the_formula(defence: str, net: dict[str, Any], tmp_path: Path) -> None:
    """Made with the net as it is before the step, in eval mode, from the true labels."""
    run = opened(tmp_path / "run", defence=defence, **net)
    seen = watched(run)
    options = {name: value for name, value in net.items() if name != "net_type"}
    twin = build(net["net_type"], task=Task(10, 1, (8, 8)), seed=5, **options).double().eval()
    for clean, given, labels, before in zip(seen.clean, seen.given, seen.labels, seen.before, strict=True):
        twin.load_state_dict(before)
        count = len(clean) if defence == "fgsm" else len(clean) // 2
        pixels = in_pixels(run, clean[:count]).clamp(0, 1)
        want, gradient = by_hand(twin, pixels, labels[:count], 0.3, run)
        # A sign next to 0 is a matter of rounding; behind a pooling many are 0 exactly.
        clear = (gradient.abs() > 1e-4 * gradient.abs().amax((1, 2, 3), keepdim=True)) | (gradient == 0)
        assert clear.float().mean() > 0.8
        assert (gradient[clear] != 0).float().mean() > 0.05
        torch.testing.assert_close(in_pixels(run, given[:count])[clear], want[clear], rtol=0, atol=2e-6)


def test_pgd_training_raises_the_loss_further_than_fgsm(tmp_path: Path) -> None:
    """In eval mode, on the net of the step; PGD starts at random and so never gives the same images twice."""
    run = opened(tmp_path / "run", nepochs=3, learning_rate=0.1, optim_method="SGD")
    assert execution.execute(run, QUIET) is not None
    model, test = run.in_pixels.eval(), run.images.test
    x, y = test.images[:100].float() / 255, test.labels[:100]
    found = [x]
    for steps in (1, 10):
        adversary = Adversary(Threat("linf", 0.1), steps=steps)
        found.append(adversarial_images(model, x, y, adversary, generator=stream(1, "attack")))
    with torch.no_grad():
        losses = [float(cross_entropy(model(images), y)) for images in found]
    assert losses[0] < losses[1] < losses[2]
    twice = [adversarial_images(model, x, y, adversary, generator=stream(seed, "attack")) for seed in (1, 2)]
    assert torch.equal(twice[0], found[2])
    assert not torch.equal(*twice)


@pytest.mark.parametrize("defence", ATTACKED)
@pytest.mark.parametrize("mode", [None, "eval", "train"])
def test_the_attack_is_made_in_eval_mode_or_in_train_mode_where_asked(
    defence: str, mode: str | None, tmp_path: Path
) -> None:
    run = opened(tmp_path / "run", defence=defence, defence_mode=mode, **NORMED)
    modes: list[set[bool]] = []
    run.model.register_forward_pre_hook(lambda model, args: modes.append({part.training for part in model.modules()}))
    x, y = batch(run)
    run.model.train()
    with run.during(x, y, stream(1, "attack")):
        pass
    assert len(modes) == (10 if defence == "pgd" else 1), "a pass for each step of the attack"
    assert all(found == {mode == "train"} for found in modes)


def batch(run: Run, count: int = 32) -> tuple[Tensor, Tensor]:
    return run.normalised(run.training.images[:count]), run.training.labels[:count]


@pytest.mark.parametrize("defence", ATTACKED)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("net", [PAPER, NORMED], ids=lambda net: net["net_type"])
def test_the_attack_leaves_no_trace(defence: str, mode: str, net: dict[str, Any], tmp_path: Path) -> None:
    run = opened(
        tmp_path / "run", defence=defence, defence_mode=mode, defence_steps=3 if defence == "pgd" else None, **net
    )
    run.model.train()
    next(part for part in run.model.modules() if isinstance(part, nn.Dropout)).eval()  # modes need not be the same
    for number, value in enumerate(run.model.parameters()):
        value.grad = torch.full_like(value, number)
    x, y = batch(run)
    clean, labels = x.clone(), y.clone()
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    modes = [part.training for part in run.model.modules()]
    random = torch.get_rng_state()
    with run.during(x, y, stream(1, "attack")) as given:
        assert not torch.equal(given, clean)
        assert not given.requires_grad
        assert torch.equal(torch.get_rng_state(), random)
        assert [part.training for part in run.model.modules()] == modes
        assert same(run.model.state_dict(), state)
    assert torch.equal(x, clean)
    assert torch.equal(y, labels)
    assert all((value.grad == number).all() for number, value in enumerate(run.model.parameters()))
    assert torch.is_grad_enabled()


def test_dropout_in_the_attack_follows_the_generator(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", defence="fgsm", defence_mode="train")
    x, y = batch(run)
    found = []
    for seed, other in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(other)  # the global state must not matter
        with run.during(x, y, stream(seed, "attack")) as given:
            found.append(given)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("defence", ["fgsm-half", "batchout"])
def test_a_batch_of_one_has_no_half(defence: str, tmp_path: Path) -> None:
    run = opened(tmp_path / "run", defence=defence)
    x, y = batch(run, 1)
    with run.during(x, y, stream(1, "attack")) as given:
        assert torch.equal(given, x)
        assert run.model(given).shape == (1, 10)


@pytest.mark.parametrize("defence", DEFENCES)
def test_a_run_leaves_the_global_random_state_alone_and_does_not_depend_on_it(defence: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        run = opened(tmp_path / str(seed), defence=defence)
        before = torch.get_rng_state()
        assert execution.execute(run, QUIET) is not None
        assert torch.equal(torch.get_rng_state(), before)
    assert same(weights(tmp_path / "1"), weights(tmp_path / "2"))


def test_every_defence_trains_another_net(tmp_path: Path) -> None:
    found = []
    for defence in DEFENCES:
        executed(tmp_path / defence, defence=defence)
        found.append(weights(tmp_path / defence)["conv1.weight"])
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_every_defence_lets_the_net_learn(tmp_path: Path) -> None:
    """More than twice the chance of 10 %, on test images."""
    for defence in DEFENCES:
        flags = {} if defence in ("none", "batchout") else {"defence_eps": "0.05"}
        given = {"nepochs": 4, "train_size": 400, "optim_method": "Adam", "learning_rate": 0.01, "nfilters": 8}
        run = executed(tmp_path / defence, defence=defence, net_type="batchout_mnist", **given, **flags)
        assert run.rows[-1]["correct"] / run.rows[-1]["total"] > 0.2, defence


# --- BatchOut in training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["different-class", "same-class"])
def test_batchout_layers_see_the_labels_of_their_batch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three places in each of four steps; whom they choose is of the right class."""
    drawn: list[tuple[Tensor, Tensor]] = []

    def watch(name: str, count: int, labels: Tensor, *, generator: torch.Generator) -> Tensor:
        assert name == kind
        partners = layers.draw_partners(name, count, labels, generator=generator)
        drawn.append((labels.clone(), partners))
        return partners

    # By its name the module cannot be reached: the package exports a function of that name.
    monkeypatch.setattr(importlib.import_module("perturblab.layers.batchout"), "draw_partners", watch)
    seen = watched(opened(tmp_path / "run", defence="batchout", batchout_partners=kind))
    assert len(drawn) == 12
    for at, (labels, partners) in enumerate(drawn):
        assert torch.equal(labels, seen.labels[at // 3])
        equal = labels[partners] == labels
        alone = torch.tensor([(labels == label).sum() == 1 for label in labels])
        assert (equal.all() or (~equal & ~alone).sum() == 0) if kind == "same-class" else not equal.any()


def activations(run: Run, **step: Any) -> dict[str, Tensor]:
    """What each place hands on in a training pass without dropout."""
    found: dict[str, Tensor] = {}
    hooks = [
        run.model.get_submodule(name).register_forward_hook(
            lambda part, args, out, name=name: found.__setitem__(name, out.detach())
        )
        for name in run.mixings
    ]
    for part in run.model.train().modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    x, y = batch(run)
    with layers.batch_step(y, **step):
        run.model(x)
    for hook in hooks:
        hook.remove()
    return found


def test_batchout_as_published_moves_the_first_half_at_every_place(tmp_path: Path) -> None:
    """Table 1: eta 0.05, 0.1 and 0.1; at the first place, row by row, x + eta (x_r - x) for some r of the batch."""
    run = opened(tmp_path / "run", defence="batchout")
    mixed, plain = activations(run), activations(run, active=False)
    assert list(mixed) == ["conv1", "conv2", "fc1"]
    for name, out in mixed.items():
        same_rows = [torch.equal(a, b) for a, b in zip(out, plain[name], strict=True)]
        assert all(same_rows[16:]), "the second half of the batch is entirely clean"
        assert not any(same_rows[:16]) or name == "conv1", "a row may draw itself"
    x, out = plain["conv1"].double(), mixed["conv1"].double()
    for i in range(16):
        misfit = [float((out[i] - x[i] - 0.05 * (x[r] - x[i])).abs().max()) for r in range(32)]
        assert min(misfit) < 1e-6


def test_in_evaluation_batchout_is_gone(tmp_path: Path) -> None:
    run = executed(tmp_path / "run", defence="batchout", batchout_eta="0.9", batchout_k="1.0")
    plain = build("batchout_mnist", task=Task(10, 1, (8, 8)), seed=7, nfilters=8, padding=2).eval()
    have = weights(tmp_path / "run")
    plain.load_state_dict({name: value for name, value in have.items() if not name.endswith("batchout_draws")})
    x = run.normalised(run.images.test.images)
    with torch.no_grad():
        logits = run.model.eval()(x)
        torch.testing.assert_close(logits, plain(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(logits, run.model(x)), "and nothing is drawn"
    right = int((logits.argmax(1) == run.images.test.labels).sum())
    record = records.load(tmp_path / "run" / "record.json")
    assert record.counts.last.correct == right


@pytest.mark.parametrize("inference", [False, True])
def test_measuring_does_not_move_the_draws(inference: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images, audited after every epoch or not; also where BatchOut stays on in evaluation."""

    def placed(config: TrainConfig, model: nn.Module) -> dict[str, Mixing]:
        return {name: replace(mixing, inference=inference) for name, mixing in make_mixings(config, model).items()}

    monkeypatch.setattr(runs, "make_mixings", placed)
    for audit in (False, True):
        executed(tmp_path / str(audit), defence="batchout", nepochs=2, audit=audit)
    assert same(weights(tmp_path / "False"), weights(tmp_path / "True"))


def test_active_in_evaluation_the_answers_depend_on_batch_mates_and_chance() -> None:
    """D2, the published mistake under its own name: half of the batch of 32 differs twice, single images do not."""
    net = nn.Sequential(
        nn.Linear(6, 6),
        BatchOut(Mixing(eta=0.3, k=0.5, partners="no-self"), generator=stream(1, "batchout")),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()
    x = torch.randn(32, 6, generator=stream(1, "x"))
    wrong = ActiveBatchOut(net)
    assert not wrong.training
    with torch.no_grad():
        one, two = wrong(x), wrong(x)
        differs = (one != two).any(1)
        assert not differs[16:].any()
        assert differs[:16].sum() >= 14
        torch.testing.assert_close(torch.cat([wrong(row[None]) for row in x]), net(x))
        assert torch.equal(net(x), net(x))


# --- stopping and going on ------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "batchout": {
        "defence": "batchout",
        "batchout_partners": "different-class",
        "batchout_rows": "random",
        "batchout_eta": "U[0,0.4]",
        "batchout_eta_per": "image",
        "batchout_shared": "partners",
        "audit": True,
    },
    "noise": {"defence": "batchout", "batchout_partners": "noise", **NORMED},
    "fgsm-half": {"defence": "fgsm-half", "defence_mode": "train"},
    "pgd": {"defence": "pgd", "defence_steps": 2, "precision": "bf16", **NORMED},
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the uninterrupted run of a kind; made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("straight"), dict[str, Path]()

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = executed(root / kind, nepochs=2, **KINDS[kind]).folder
        return made[kind]

    return folder


def untimed(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4, 6], ids="after {}".format)
def test_interrupted_and_resumed_equals_uninterrupted(
    kind: str, steps: int, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    made, want = iter(range(1, steps)), straight(kind)
    run = opened(tmp_path / "run", nepochs=2, **KINDS[kind])
    assert execution.execute(run, QUIET, lambda: next(made, None) is None) is None
    torch.manual_seed(steps)
    resumed = runs.resume_run(tmp_path / "run", {}, QUIET)
    assert resumed.state.epoch * resumed.steps + resumed.state.step == steps
    assert execution.execute(resumed, QUIET) is not None
    assert same(weights(tmp_path / "run"), weights(want))
    assert untimed(tmp_path / "run") == untimed(want)
    assert recorded(tmp_path / "run") == recorded(want)


def test_a_run_whose_batchout_stands_elsewhere_is_not_taken_up(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", defence="batchout", nepochs=2)
    execution.execute(run, QUIET, lambda: True)
    with pytest.raises(UserError, match="of another net"):
        runs.resume_run(tmp_path / "run", {"batchout_at": "conv1"}, QUIET)


# --- flags and records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defence", "flags"),
    [
        ("none", {"batchout_eta": "0.1"}),
        ("none", {"defence_eps": "0.1"}),
        ("none", {"batchout_detach": False}),
        ("batchout", {"defence_eps": "0.1"}),
        ("batchout", {"defence_mode": "train"}),
        ("fgsm", {"defence_steps": 3}),
        ("fgsm", {"batchout_k": "3"}),
        ("fgsm-half", {"defence_steps": 3}),
        ("fgsm-half", {"batchout_at": "all"}),
        ("pgd", {"batchout_partners": "mutual"}),
        ("pgd", {"batchout_rows": "random", "batchout_shared": "eta"}),
    ],
    ids=str,
)
def test_a_flag_that_the_defence_does_not_read_is_an_error(defence: str, flags: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "run", defence=defence, **flags)
    text = str(caught.value)
    assert "\n" not in text
    assert f"--defence {defence} does not read it" in text
    assert all("--" + name.replace("_", "-") in text for name in flags)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"batchout_at": "nope"}, "no module is called 'nope'; there are conv1"),
        ({"batchout_at": "conv1,nope"}, "no module is called 'nope'"),
        ({"batchout_at": "all-after:nope"}, "'all-after:nope' matches none of the"),
        ({"batchout_eta": "much"}, "eta got 'much'; expected a number"),
        ({"batchout_eta": "0.3:0.9"}, "eta has the probabilities"),
        ({"batchout_k": "1.5"}, "--batchout-k got '1.5'; expected a count such as 64, or a fraction"),
        ({"batchout_k": "-1"}, "--batchout-k got '-1'"),
        ({"batchout_partners": "others"}, "--batchout-partners got 'others'"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_told_in_one_line(flags: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "run", defence="batchout", **flags)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def mixings(net: str = "batchout_mnist", **given: Any) -> dict[str, Mixing]:
    options: dict[str, Any] = {"bottleneck_resnet": {"blocks": 1}}.get(net, {})
    settings = config(defence="batchout", **{"net_type": net, "nfilters": 4} | options | given)
    return make_mixings(settings, build(net, task=Task(10, 1, (8, 8)), nfilters=4, **options))


@pytest.mark.parametrize(
    ("net", "sites", "k"),
    [
        ("batchout_mnist", {"conv1": "0.05", "conv2": "0.1", "fc1": "0.1"}, 0.5),
        (
            "batchout_cifar",
            {f"conv{n}": "U[0,0.1]" for n in (1, 2, 3, 4)} | dict.fromkeys(("conv5", "fc1", "fc2"), "U[0,0.15]"),
            0.5,
        ),
        ("bottleneck_resnet", {"flatten": "0.3"}, 1.0),
        ("vgg19", {f"features.{n}": "0.2" for n in (11, 13, 15, 17, 19)}, 1.0),
        ("vgg19_tied", {f"features.{n}": "0.2" for n in (11, 13, 15, 17, 19)}, 1.0),
    ],
)
def test_without_flags_batchout_is_as_published_for_the_net(net: str, sites: dict[str, str], k: float) -> None:
    """The paper: half of the rows, eta of tables 1 and 2. Its reproduction: all rows."""
    found = mixings(net)
    assert {name: str(mixing.magnitude) for name, mixing in found.items()} == sites
    for mixing in found.values():
        assert (mixing.moved(100), mixing.rows, mixing.partners) == (int(100 * k), "first", "replacement")
        assert (mixing.eta_per, mixing.detach, mixing.inference) == ("call", True, False)


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ({"batchout_eta": "0.3:0.6,-0.2:0.4"}, {"eta": "0.3:0.6,-0.2:0.4"}),
        ({"batchout_k": "1"}, {"k": 1}),
        ({"batchout_k": "1.0"}, {"k": 1.0}),
        ({"batchout_k": "0"}, {"k": 0}),
        ({"batchout_rows": "random"}, {"rows": "random"}),
        ({"batchout_partners": "noise"}, {"partners": "noise"}),
        ({"batchout_eta_per": "image"}, {"eta_per": "image"}),
        ({"batchout_shared": "both"}, {"shared": "both"}),
        ({"batchout_detach": False}, {"detach": False}),
    ],
    ids=str,
)
def test_a_flag_goes_to_every_place_and_the_rest_stays_published(flags: dict[str, Any], want: dict[str, Any]) -> None:
    before, found = mixings(), mixings(**flags)
    assert before.keys() == found.keys()
    for name, mixing in found.items():
        given, own = asdict(mixing), asdict(before[name])
        assert given == own | want
        assert type(given["k"]) is type((own | want)["k"]), "1 is a row, 1.0 all of them"


@pytest.mark.parametrize(
    ("net", "at", "want"),
    [
        ("batchout_mnist", "all", {"conv1": "0.05", "conv2": "0.1", "fc1": "0.1"}),
        ("batchout_mnist", "last", {"fc1": "0.1"}),
        ("batchout_mnist", "alternate", {"conv1": "0.05", "fc1": "0.1"}),
        ("batchout_mnist", "all-after:conv2", {"conv2": "0.1", "fc1": "0.1"}),
        ("batchout_mnist", "conv1, fc1", {"conv1": "0.05", "fc1": "0.1"}),
        ("batchout_mnist", "conv*", {"conv1": "0.05", "conv2": "0.1"}),
        ("lenet", None, {"0.0": "0.1", "2.0": "0.1", "4.0": "0.1", "8": "0.1"}),
        ("lenet", "8", {"8": "0.1"}),
    ],
)
def test_places_are_chosen_by_a_rule(net: str, at: str | None, want: dict[str, str]) -> None:
    """The subsets of figure 4b: a published place keeps its published magnitude."""
    found = mixings(net, batchout_at=at)
    assert {name: str(mixing.magnitude) for name, mixing in found.items()} == want


@pytest.mark.parametrize(
    ("flags", "dataset", "want"),
    [
        ({"defence": "none"}, "MNIST", None),
        ({"defence": "batchout"}, "MNIST", None),
        ({"defence": "fgsm"}, "MNIST", Adversary(Threat("linf", 0.3))),
        ({"defence": "fgsm-half"}, "CIFAR10", Adversary(Threat("linf", 8 / 255), share=0.5)),
        ({"defence": "fgsm-half", "defence_eps": "0.1"}, "MNIST", Adversary(Threat("linf", 0.1), share=0.5)),
        ({"defence": "fgsm", "defence_eps": "4/255"}, "digits", Adversary(Threat("linf", 4 / 255))),
        ({"defence": "pgd"}, "CIFAR10", Adversary(Threat("linf", 8 / 255), steps=10)),
        ({"defence": "pgd", "defence_steps": 7}, "digits", Adversary(Threat("linf", 0.3), steps=7)),
        ({"defence": "fgsm", "defence_mode": "train"}, "digits", Adversary(Threat("linf", 0.3), training=True)),
    ],
    ids=str,
)
def test_flags_decide_the_adversary(flags: dict[str, Any], dataset: str, want: Adversary | None) -> None:
    assert make_adversary(config(**flags), dataset) == want


@pytest.mark.parametrize("wrong", [{"share": -0.1}, {"share": 1.5}, {"steps": 0}], ids=str)
def test_an_adversary_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"share is .* and steps .*; expected"):
        Adversary(Threat("linf", 0.1), **wrong)


DEFENCE_FLAGS = ("defence", "batchout_", "defence_")


def defence_flags(said: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name.startswith(DEFENCE_FLAGS)}


def test_the_record_holds_every_place_with_all_its_settings(tmp_path: Path) -> None:
    executed(tmp_path / "run", defence="batchout", batchout_k="3", batchout_at="conv1,relu1")
    assert defence_flags(recorded(tmp_path / "run")) == {
        "defence": "batchout",
        "batchout_at": "conv1,relu1",
        "batchout_eta": "0.05;0.1",
        "batchout_k": 3,
        "batchout_rows": "first",
        "batchout_partners": "replacement",
        "batchout_eta_per": "call",
        "batchout_shared": "none",
        "batchout_detach": True,
    }


@pytest.mark.parametrize(
    ("defence", "flags", "want"),
    [
        ("fgsm", {}, {"defence_mode": "eval"}),
        ("fgsm-half", {"defence_mode": "train"}, {"defence_mode": "train"}),
        ("pgd", {"defence_steps": 2}, {"defence_mode": "eval", "defence_steps": 2}),
    ],
)
def test_the_record_holds_the_adversary(
    defence: str, flags: dict[str, Any], want: dict[str, Any], tmp_path: Path
) -> None:
    executed(tmp_path / "run", defence=defence, defence_eps="1/4", **flags)
    assert defence_flags(recorded(tmp_path / "run")) == {"defence": defence, "defence_eps": "1/4", **want}


def test_a_record_without_a_defence_has_no_word_of_one(tmp_path: Path) -> None:
    executed(tmp_path / "run")
    said = recorded(tmp_path / "run")
    assert not defence_flags(said)
    assert not {"normalise", "augment"} & said.keys()


@pytest.mark.parametrize(
    "flags",
    [
        {"defence": "batchout"},
        {"defence": "batchout", "batchout_at": "conv1,relu1", "batchout_eta": "U[0,0.1];0.3:0.6,-0.2:0.4"},
        {"defence": "pgd", "defence_steps": 2, "defence_mode": "train"},
        {"defence": "fgsm-half", "normalise": False, "augment": False},
    ],
    ids=str,
)
def test_a_record_repeats_its_run(flags: dict[str, Any], tmp_path: Path) -> None:
    """Its flags are those of the command line, and give the same weights and the same flags again."""
    executed(tmp_path / "run", **flags)
    said = recorded(tmp_path / "run")
    executed(tmp_path / "again", **{name: value for name, value in said.items() if name not in ("classes",)})
    assert recorded(tmp_path / "again") == said
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("etas", ["0.1;0.2", "0.1;0.2;0.3;0.4"])
def test_as_many_magnitudes_as_places_or_one(etas: str) -> None:
    with pytest.raises(UserError, match=r"--batchout: eta got \d magnitudes for 3 places; give one, or one a place"):
        mixings("batchout_mnist", batchout_eta=etas)
    assert [str(m.magnitude) for m in mixings("batchout_mnist", batchout_eta="0.1;0.2;0.3").values()] == [
        *("0.1", "0.2", "0.3")
    ]


@pytest.mark.parametrize(("net", "k", "shared"), [("batchout_cifar", 0.5, "none"), ("vgg19", 1.0, "partners")])
def test_a_place_of_ones_own_mixes_as_published_for_the_net(net: str, k: float, shared: str) -> None:
    place = {"batchout_cifar": "relu1", "vgg19": "features.12"}[net]
    (mixing,) = mixings(net, batchout_at=place).values()
    assert (mixing.k, mixing.shared, str(mixing.magnitude)) == (k, shared, "0.1")


# --- preparation ----------------------------------------------------------------------------------------------------


def test_without_normalisation_the_net_sees_pixels(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", normalise=False)
    images = run.training.images[:5]
    assert torch.equal(run.normalised(images), images.float() / 255)
    run.model.eval()
    assert torch.equal(run.in_pixels(images.float() / 255), run.model(images.float() / 255))
    usual = opened(tmp_path / "usual")
    assert not torch.allclose(usual.normalised(images), images.float() / 255)


@pytest.mark.parametrize("augment", [None, True, False])
def test_without_augmentation_images_are_trained_on_as_they_are(
    augment: bool | None, colours: Path, tmp_path: Path
) -> None:
    given = {"dataset_train": str(colours), "train_size": None, "net_type": "batchout_cifar", "nfilters": 2}
    run = opened(tmp_path / "run", augment=augment, batch_size=6, **given)
    own = data.preparation(run.images)
    assert own.crop_padding == 4
    assert own.flip
    assert (run.preparation.mean, run.preparation.std) == (own.mean, own.std)
    generator = stream(1, "augmentation")
    before = generator.get_state()
    images = run.training.images
    found = run.augmented(images, generator)
    assert torch.equal(found, run.normalised(images)) == (augment is False)
    assert torch.equal(generator.get_state(), before) == (augment is False)


def test_the_adversary_of_augmented_images_attacks_what_was_augmented(colours: Path, tmp_path: Path) -> None:
    given = {"dataset_train": str(colours), "train_size": None, "net_type": "batchout_cifar", "nfilters": 2}
    run = opened(tmp_path / "run", defence="fgsm-half", batch_size=6, **given)
    seen = watched(run)
    assert len(seen.given) == 3
    for clean, attacked in zip(seen.clean, seen.given, strict=True):
        assert torch.equal(clean[3:], attacked[3:])
        gap = (in_pixels(run, attacked[:3]) - in_pixels(run, clean[:3])).abs()
        assert 7.9 / 255 < gap.amax() <= 8 / 255 + 1e-6


def test_the_flags_work_on_the_command_line(tmp_path: Path) -> None:
    """The recipe of the reproduction's MNIST code, small: no normalisation, its schedule, BatchOut."""
    net = "--net-type batchout_mnist --nfilters 2 --dataset-train digits --train-size 20 --batch-size 10 --nthreads 1"
    recipe = "--no-normalise --no-augment --optimizer-schedule batchout --learning-rate 0.01 --momentum 0 --nepochs 12"
    defence = "--defence batchout --batchout-k 0.25 --batchout-eta U[0,0.2] --batchout-partners different-class"
    detach = "--no-batchout-detach"
    folder = tmp_path / "run"
    assert cli.main(shlex.split(f"train {net} {recipe} {defence} {detach} --quiet --out {folder}")) == 0
    said = recorded(folder)
    assert (said["normalise"], said["augment"], said["optimizer_schedule"]) == (False, False, "batchout")
    assert said["batchout_eta"] == ";".join(["U[0,0.2]"] * 3)
    assert (said["batchout_k"], said["batchout_partners"], said["batchout_detach"]) == (0.25, "different-class", False)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    assert rates == pytest.approx([1e-2] * 5 + [1e-3] * 6 + [1e-5], rel=1e-12)


@pytest.mark.parametrize("dataset", ["MNIST", "CIFAR10", "digits", ""])
def test_the_batchout_schedule_epoch_by_epoch(dataset: str) -> None:
    """1e-2, 1e-3 after epoch index 4, 1e-5 after index 10, over 15 epochs; the step in the epoch does not matter."""
    want = []
    for epoch in range(15):
        rate = 1e-2
        if epoch > 4:
            rate = 1e-3
        if epoch > 10:
            rate = 1e-5
        want.append(rate)
    for step in (0, 7):
        have = [1e-2 * lr_factor("batchout", dataset, epoch, 15, step, 8) for epoch in range(15)]
        assert have == pytest.approx(want, rel=1e-12)
    assert lr_factor("batchout", dataset, 299, 300) == pytest.approx(1e-3)


def test_the_recipe_takes_the_schedule(tmp_path: Path) -> None:
    recipe = configured.make_recipe(config(optimizer_schedule="batchout"), "MNIST")
    assert recipe.schedule == "batchout"
