"""Other people's implementations as oracles: foolbox, ART, and pyautoattack behind its adapter."""

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nets import CLASSES, Noisy, NotANumber, count, digits, grey, lengths, linear, right_ones, seeded, trained, watched
from perturblab.attacks import (
    Effort,
    Ensemble,
    PixelModel,
    Threat,
    attack_in_turn,
    autoattack,
    deepfool,
    fgsm,
    pgd,
    square,
    still_right,
    violations,
)
from perturblab.attacks.autoattack import STANDARD, standard
from perturblab.errors import NonFiniteError, UserError
from told import in_order


@cache
def foolbox() -> Any:
    """Imported late: it asks SciPy for a name that is about to go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
        import foolbox

        return foolbox


# --- foolbox and ART -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def art_model() -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        trained(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )


@pytest.fixture(scope="module")
def foolbox_model() -> Any:
    return foolbox().PyTorchModel(trained(), bounds=(0, 1), device="cpu")


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.1, 0.3, 0.5])
def test_fgsm_equals_foolbox_and_art_exactly(
    foolbox_model: Any, art_model: Any, many: tuple[Tensor, Tensor], eps: float
) -> None:
    from art.attacks.evasion import FastGradientMethod

    x, y = many
    own = fgsm(trained(), x, y, Threat("linf", eps))
    raw, _, success = foolbox().attacks.LinfFastGradientAttack()(foolbox_model, x, y, epsilons=eps)
    assert torch.equal(own, raw)
    assert torch.equal(still_right(trained(), own, y), ~success)
    theirs = FastGradientMethod(art_model, eps=eps, batch_size=len(x)).generate(x.numpy(), y=y.numpy())
    assert torch.equal(own, torch.from_numpy(theirs))


@pytest.mark.parametrize("eps", [0.1, 0.5, 1.5, 4.0])
def test_l2_fgm_equals_foolbox(foolbox_model: Any, many: tuple[Tensor, Tensor], eps: float) -> None:
    x, y = many
    own = fgsm(trained(), x, y, Threat("l2", eps))
    raw, _, success = foolbox().attacks.L2FastGradientAttack()(foolbox_model, x, y, epsilons=eps)
    torch.testing.assert_close(own, raw, rtol=0, atol=1e-6)
    assert torch.equal(still_right(trained(), own, y), ~success)


@pytest.mark.parametrize("eps", [0.03, 0.1, 0.3])
def test_pgd_from_the_image_equals_foolbox_step_for_step(
    foolbox_model: Any, many: tuple[Tensor, Tensor], eps: float
) -> None:
    x, y = many
    for steps in (1, 4, 10):
        theirs = foolbox().attacks.LinfPGD(steps=steps, random_start=False, abs_stepsize=2.5 * eps / steps)
        raw, _, _ = theirs(foolbox_model, x, y, epsilons=eps)
        own = pgd(trained(), x, y, Threat("linf", eps), Effort(steps=steps, restarts=1), start_at_random=False)
        torch.testing.assert_close(own, raw, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6)])
def test_pgd_lies_within_the_spread_of_restarts_of_foolbox_and_art(
    foolbox_model: Any, art_model: Any, many: tuple[Tensor, Tensor], norm: str, eps: float
) -> None:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    x, y = many
    steps, size, order = 20, 2.5 * eps / 20, {"linf": np.inf, "l2": 2}[norm]
    foolbox_pgd = {"linf": foolbox().attacks.LinfPGD, "l2": foolbox().attacks.L2PGD}[norm]
    own, theirs = [], []
    state = np.random.get_state(legacy=True)
    for seed in range(4):
        own.append(
            count(
                trained(),
                pgd(trained(), x, y, Threat(norm, eps), Effort(steps=20, restarts=1), generator=seeded(seed)),
                y,
            )
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)
            raw, _, _ = foolbox_pgd(steps=steps, abs_stepsize=size)(foolbox_model, x, y, epsilons=eps)
            made = ProjectedGradientDescentPyTorch(
                art_model,
                norm=order,
                eps=eps,
                eps_step=size,
                max_iter=steps,
                num_random_init=1,
                batch_size=len(x),
                verbose=False,
            ).generate(x.numpy(), y=y.numpy())
        theirs += [count(trained(), raw, y), count(trained(), torch.from_numpy(made), y)]
    np.random.set_state(state)
    clean, single = count(trained(), x, y), count(trained(), fgsm(trained(), x, y, Threat(norm, eps)), y)
    assert 0 < max(own) < single < clean, "a radius at which iterating pays"
    spread = max(theirs) - min(theirs)
    assert min(theirs) - 2 <= np.mean(own) <= max(theirs) + 2
    assert spread <= 10, "the oracles agree, or they say nothing"


@pytest.mark.parametrize("cap", [1, 2, 3, 4, 5])
def test_deepfool_equals_foolbox_at_every_cap(foolbox_model: Any, many: tuple[Tensor, Tensor], cap: int) -> None:
    x, y = many
    raw, _, _ = foolbox().attacks.L2DeepFoolAttack(steps=cap, candidates=10, overshoot=0.02)(
        foolbox_model, x, y, epsilons=None
    )
    own = deepfool(trained(), x, y, Threat("l2", math.inf), iterations=cap)
    torch.testing.assert_close(own, raw, rtol=0, atol=1e-6)
    assert torch.equal(still_right(trained(), own, y), still_right(trained(), raw, y))


@pytest.mark.parametrize("cap", [1, 2, 3, 5])
def test_unclipped_deepfool_equals_foolbox_without_bounds_at_every_cap(many: tuple[Tensor, Tensor], cap: int) -> None:
    x, y = many
    unbounded = foolbox().PyTorchModel(trained(), bounds=(-np.inf, np.inf), device="cpu")
    oracle = foolbox().attacks.L2DeepFoolAttack(steps=cap, candidates=10, overshoot=0.02)
    raw, _, _ = oracle(unbounded, x, y, epsilons=None)
    own = deepfool(trained(), x, y, Threat("l2", math.inf).without_bounds(), iterations=cap)
    torch.testing.assert_close(own, raw, rtol=0, atol=1e-5)
    assert raw.min() < -0.1, "the oracle does not clip either"
    assert torch.equal(still_right(trained(), own, y), still_right(trained(), raw, y))
    clipped = deepfool(trained(), x, y, Threat("l2", math.inf), iterations=cap)
    assert count(trained(), own, y) <= count(trained(), clipped, y)


def test_the_default_steps_of_pgd_cross_the_ball_where_those_of_foolbox_move_a_third_of_it() -> None:
    """The published "PGD10" left 54.8 % where FGSM left 52.5 %: ten steps of eps / 30."""
    model, x = linear(2), grey()
    y = model(x).argmax(1)
    raw, _, _ = foolbox().attacks.LinfPGD(steps=10, random_start=False)(
        foolbox().PyTorchModel(model.eval(), bounds=(0, 1), device="cpu"), x, y, epsilons=0.1
    )
    own = pgd(model, x, y, Threat("linf", 0.1), Effort(steps=10, restarts=1), start_at_random=False)
    assert lengths(raw, x, "linf").max() == pytest.approx(0.1 / 3, rel=0.02)
    assert lengths(own, x, "linf").min() == pytest.approx(0.1, rel=1e-5)


# --- AutoAttack and Square ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "want"),
    [
        (2, ("apgd-ce", "fab-t", "square")),
        (3, ("apgd-ce", "apgd-dlr", "fab-t", "square")),
        (4, STANDARD),
        (10, STANDARD),
        (1000, STANDARD),
    ],
)
def test_few_classes_drop_the_losses_that_need_more(classes: int, want: tuple[str, ...]) -> None:
    assert standard(classes) == want
    assert STANDARD == ("apgd-ce", "apgd-t", "fab-t", "square")


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_autoattack_runs_on_nets_of_few_classes_and_is_no_weaker_than_pgd(classes: int) -> None:
    model = trained(classes=classes)
    x, y = right_ones(model, 16, classes)
    threat = Threat("linf", 0.2)
    found = autoattack(model, x, y, threat, Ensemble(queries=30), generator=seeded())
    left = count(model, found, y)
    assert left <= count(model, pgd(model, x, y, threat, Effort(restarts=3), generator=seeded()), y)
    assert left < 16
    assert not violations(found, x, threat).any()


@contextmanager
def spied() -> Iterator[list[dict[str, Any]]]:
    """The arguments that pyautoattack gets, and the images."""
    import pyautoattack

    seen: list[dict[str, Any]] = []

    class Spy(pyautoattack.AutoAttack):
        def __init__(self, model: nn.Module, **given: Any) -> None:
            super().__init__(model, **given)
            seen.append(given)

        def run_standard_evaluation(self, x: Tensor, y: Tensor, **given: Any) -> Any:
            effort = {"apgd": self.apgd.n_restarts, "fab": self.fab.n_restarts, "apgd-t": self.apgd_targeted.n_restarts}
            targets = (self.fab.n_target_classes, self.apgd_targeted.n_target_classes)
            seen[-1] |= {"x": x.clone(), "y": y.clone(), "restarts": effort, "targets": targets}
            seen[-1] |= {"queries": self.square.n_queries}
            return super().run_standard_evaluation(x, y, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyautoattack, "AutoAttack", Spy)
        yield seen


def table_of_survivors(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, queries: int, classes: int) -> None:
    """Hold every attack of ours to pyautoattack's own standard version, on the same survivors with the same seed."""
    from pyautoattack import AutoAttack

    names = standard(classes)
    lines: dict[str, int] = {}
    with spied() as seen:
        ours, lines = attack_in_turn(model, x, y, threat, Ensemble(queries=queries), generator=seeded(8))
    assert [call["attacks"] for call in seen] == [[name] for name in names[: len(seen)]]
    seeds = [call["seed"] for call in seen]
    assert len(set(seeds)) == len(seeds)
    left = still_right(model, x, y)
    want = x.clone()
    table = [int(left.sum())]
    for name, call in zip(names, seen, strict=False):
        rows = left.nonzero().flatten()
        assert torch.equal(call["x"], x[rows]), "every attack meets the images that the earlier ones left"
        assert torch.equal(call["y"], y[rows])
        engine = AutoAttack(
            model, eps=threat.eps, norm={"linf": "Linf", "l2": "L2"}[threat.norm], seed=call["seed"], version="standard"
        )
        engine.attacks_to_run = [name]
        engine.square.n_queries = queries
        engine.apgd_targeted.n_target_classes = engine.fab.n_target_classes = min(9, classes - 1)
        with torch.random.fork_rng():
            tracer = sys.gettrace()
            found, _ = engine.run_standard_evaluation(x[rows], y[rows], batch_size=len(rows))
            sys.settrace(tracer)
        torch.testing.assert_close(call["queries"], queries)
        want[rows] = found
        left = still_right(model, want, y)
        table.append(int(left.sum()))
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-6)
    assert torch.equal(still_right(model, ours, y), left)
    assert len(seen) == len(names), "all of them had something to do"
    assert table[0] > table[1] > 0, "the first found some, and left some"
    assert table == sorted(table, reverse=True)
    assert lines == dict(zip(names, table[1:], strict=True))
    for call in seen:
        assert call["restarts"] == {"apgd": 1, "fab": 1, "apgd-t": 1}
        assert call["targets"] == (min(9, classes - 1),) * 2
    for length in range(1, len(names)):
        part = autoattack(model, x, y, threat, Ensemble(attacks=names[:length], queries=queries), generator=seeded(8))
        assert count(model, part, y) == table[length], "a shorter list of attacks gives that line of the table"


@pytest.fixture
def clean_parameters() -> Iterator[None]:
    """pyautoattack, called directly, leaves gradients in the shared nets."""
    yield
    for classes in (3, 10):
        trained(classes=classes).zero_grad(set_to_none=True)


@pytest.mark.usefixtures("clean_parameters")
def test_every_attack_of_autoattack_equals_pyautoattack_called_directly() -> None:
    x, y = digits(classes=3)
    table_of_survivors(trained(classes=3), x[:14], y[:14], Threat("linf", 0.2), queries=30, classes=3)


@pytest.mark.slow
@pytest.mark.usefixtures("clean_parameters")
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.4)])
def test_every_attack_of_autoattack_equals_pyautoattack_on_ten_classes(norm: str, eps: float) -> None:
    x, y = digits()
    table_of_survivors(trained(), x[:40], y[:40], Threat(norm, eps), queries=500, classes=10)


def test_autoattack_keeps_an_image_that_was_wrong_or_that_nothing_breaks(
    net: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    x, y = few
    found = autoattack(net, x, y, Threat("linf", 0.12), Ensemble(queries=20), generator=seeded())
    kept = (found == x).flatten(1).all(1)
    assert kept[-1], "the one with the wrong label"
    assert torch.equal(kept[:-1], still_right(net, found, y)[:-1])
    assert 0 < kept[:-1].sum() < 7


@pytest.mark.parametrize("attack", [autoattack, square])
def test_what_pyautoattack_runs_on_silently_is_refused(
    net: PixelModel, few: tuple[Tensor, Tensor], attack: Callable[..., Tensor]
) -> None:
    threat = Threat("linf", 0.1)
    training = copy.deepcopy(net)
    training.net[1].train()
    for model, threat_, error, said in (
        (training, threat, ValueError, "training mode model.eval()"),
        (NotANumber(net), threat, NonFiniteError, "logits finite nothing"),
        (Noisy(net), threat, ValueError, "passes differ AutoAttack random"),
        (net, Threat("linf", 0.1, (-1.0, 1.0)), ValueError, "bounds (-1.0 1.0) [0 1]"),
    ):
        with pytest.raises(error, match=in_order(said)):
            attack(model, *few, threat_, generator=seeded())


def test_logits_that_are_no_number_are_found_wherever_they_are(net: PixelModel, few: tuple[Tensor, Tensor]) -> None:
    class BadAbove(nn.Module):
        """No number for images that are brighter than all the others."""

        def forward(self, x: Tensor) -> Tensor:
            return net(x).masked_fill(x.flatten(1).mean(1, keepdim=True) > 0.99, torch.nan)

    x, y = few[0][:1].repeat(70, 1, 1, 1), few[1][:1].repeat(70)
    x[-1] = 1
    with pytest.raises(NonFiniteError, match=in_order("logits finite nothing")):
        autoattack(BadAbove().eval(), x, y, Threat("linf", 0.1), generator=seeded())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_runs_where_the_net_computes_in_half_precision(
    norm: str, net: PixelModel, few: tuple[Tensor, Tensor]
) -> None:
    threat = Threat(norm, 0.1 if norm == "linf" else 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = autoattack(net, *few, threat, Ensemble(queries=20), generator=seeded())
    assert found.dtype == torch.float32
    assert still_right(net, found, few[1]).sum() < still_right(net, *few).sum()


def test_without_pyautoattack_the_error_names_the_extra(
    net: nn.Module, few: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with (
        watched(net),
        pytest.raises(UserError, match=in_order("Square pyautoattack perturblab[robust")),
    ):
        autoattack(net, *few, Threat("linf", 0.1), generator=seeded())


@pytest.mark.parametrize(("height", "width"), [(4, 8), (12, 8)])
def test_a_shape_at_which_the_l2_square_of_pyautoattack_fails_is_refused(height: int, width: int) -> None:
    x, y = torch.full((2, 1, height, width), 0.5), torch.zeros(2, dtype=torch.long)
    model = linear(4, pixels=height * width)
    said = in_order(f"images {height}x{width} Square l2 5 rows columns")
    for attack in (autoattack, square):
        with pytest.raises(ValueError, match=said):
            attack(model, x, y, Threat("l2", 0.1), generator=seeded())
    square(model, x, y, Threat("linf", 0.1), queries=5, generator=seeded())


def test_square_asks_as_often_as_it_is_told(net: nn.Module, few: tuple[Tensor, Tensor]) -> None:
    with spied() as seen:
        square(net, *few, Threat("linf", 0.02), queries=17, generator=seeded())
    assert [(call["attacks"], call["queries"], call["version"]) for call in seen] == [(["square"], 17, "custom")]


def test_an_error_inside_autoattack_leaves_no_trace_either(
    few: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyautoattack

    model = copy.deepcopy(trained(classes=CLASSES))

    def fail(self: Any, x: Tensor, y: Tensor, **given: Any) -> Any:
        torch.manual_seed(0)
        sys.settrace(None)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", fail)
    with watched(model), pytest.raises(RuntimeError, match="in the middle"):
        autoattack(model, *few, Threat("linf", 0.1), generator=seeded())
