"""Training with defences, through whole runs: what the net is trained on, what is left untouched."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from defence_runs import ATTACKED, NORMED, PAPER, batch, executed, in_pixels, opened, watched
from perturblab.attacks import Threat
from perturblab.models import Task, build
from perturblab.records.choices import Defence
from perturblab.runs import train
from perturblab.runs.run import Run
from perturblab.seeding import stream
from perturblab.training.adversarial import Adversary, adversarial_images
from run_folders import QUIET, same, weights

DEFENCES = get_args(Defence)

# --- what the net is trained on -------------------------------------------------------------------------------------


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
    mean, std = run.built.preparation.mean[0], run.built.preparation.std[0]
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
    assert train.execute(run, QUIET) is not None
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
        assert train.execute(run, QUIET) is not None
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
        assert run.history.rows[-1].correct / run.history.rows[-1].total > 0.2, defence
