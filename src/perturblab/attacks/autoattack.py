"""AutoAttack and Square, through pyautoattack (the extra ``robust``).

The package is used one attack at a time, on the images that are still classified right, because it tells no result per
attack; and it is fenced in, because it reseeds the global random state, stops the tracer of a debugger, and runs
silently on a model in training mode, on logits that are not finite and on images outside the bounds.
"""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perturblab.attacks.gradient import still_right
from perturblab.attacks.pixels import untouched
from perturblab.attacks.threat import Threat, check_images, check_radius, project
from perturblab.errors import NonFiniteError, UserError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
_NORMS = {"linf": "Linf", "l2": "L2"}
_TARGETS = 9
_LOOKED_AT = 64  # images that show whether a net is random: two may draw the same by chance


def standard(classes: int) -> tuple[str, ...]:
    """List the attacks of AutoAttack's standard version, as far as a net's classes allow.

    The targeted loss of APGD-T needs the four highest logits: with three classes APGD-DLR takes its place, with two
    nothing does.

    Args:
        classes: logits of the net.

    Returns:
        Names of attacks, in their order.

    Reference:
        Croce, Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks,
        ICML 2020.
    """
    second = {2: (), 3: ("apgd-dlr",)}.get(classes, ("apgd-t",))
    return (STANDARD[0], *second, *STANDARD[2:])


@dataclass(frozen=True)
class Ensemble:
    """The attacks that AutoAttack makes.

    Args:
        attacks: some of "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", in their order; `standard` by default.
        queries: of Square, for each image.
    """

    attacks: Sequence[str] = ()
    queries: int = 5000


_STANDARD = Ensemble()


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    ensemble: Ensemble = _STANDARD,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack every image until one attack succeeds; the others stay as they are.

    Args:
        model: from images in [0, 1] to logits (N, classes); in eval mode, and with one answer for one image.
        x: (N, C, H, W), within [0, 1].
        y: int64 (N,), the true labels.
        threat: norm and radius; its bounds are [0, 1].
        ensemble: the attacks.
        generator: decides the attacks' own seeds.

    Returns:
        (N, C, H, W), in the ball and the bounds.

    Raises:
        UserError: pyautoattack is not installed, or images of a shape that its Square does not take in l2.
        ValueError: a model in training mode or with a random forward pass, images outside the bounds, other bounds
            than [0, 1], or no generator.
        NonFiniteError: logits that are not finite.

    Reference:
        as `standard`; Square: Andriushchenko et al., ECCV 2020.
    """
    return attack_in_turn(model, x, y, threat, ensemble, generator=generator)[0]


def attack_in_turn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    ensemble: Ensemble = _STANDARD,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, int]]:
    """Do the same as `autoattack`, and count how many images stand after each attack.

    Args:
        model: from images in [0, 1] to logits (N, classes); in eval mode.
        x: (N, C, H, W), within [0, 1].
        y: int64 (N,).
        threat: norm and radius.
        ensemble: the attacks, in turn.
        generator: decides the attacks' own seeds.

    Returns:
        (N, C, H, W), and for each attack in turn: of the images that were still right, how many it left right.

    Raises:
        UserError, ValueError, NonFiniteError: as `autoattack`.
    """
    check_images(x, threat)
    check_radius(threat)
    _check(threat, generator, ensemble.attacks or STANDARD, *x.shape[-2:])
    result, table = x.clone(), dict[str, int]()
    if not len(x) or threat.eps == 0:
        return result, table
    classes = _check_model(model, x)
    for attack in ensemble.attacks or standard(classes):
        left = still_right(model, result, y).nonzero().flatten()
        if not len(left):
            break
        seed = int(torch.randint(2**31, (), generator=generator))
        with _fenced(model), untouched(model, seed=seed):
            engine = _engine(_Contiguous(model, x), threat, attack, seed, x.device)
            _set_effort(engine, ensemble.queries, classes)
            found, _ = engine.run_standard_evaluation(x[left].contiguous(), y[left], batch_size=max(len(left), 1))
        result[left] = project(found, x[left], threat)
        table[attack] = int(still_right(model, result[left], y[left]).sum())
    return result, table


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    queries: int = 5000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack with Square alone: random search that looks at no gradient.

    Args:
        model: from images in [0, 1] to logits (N, classes); in eval mode.
        x: (N, C, H, W), within [0, 1].
        y: int64 (N,), the true labels.
        threat: norm and radius.
        queries: forward passes for each image.
        generator: decides the search.

    Returns:
        (N, C, H, W), in the ball and the bounds.

    Raises:
        UserError, ValueError, NonFiniteError: as `autoattack`.

    Reference:
        Andriushchenko et al., Square attack, ECCV 2020.
    """
    return autoattack(model, x, y, threat, Ensemble(("square",), queries), generator=generator)


def _check(threat: Threat, generator: torch.Generator | None, attacks: Sequence[str], height: int, width: int) -> None:
    if threat.bounds != (0.0, 1.0):
        raise ValueError(f"bounds are {threat.bounds}; AutoAttack knows [0, 1] only")
    if generator is None:
        raise ValueError("generator is None, and the attacks are random; pass a torch.Generator")
    if threat.norm == "l2" and "square" in attacks and not 5 <= height <= width:
        raise UserError(f"images are {height}x{width}; Square in l2 needs 5 rows at least, and no more than columns")


@torch.no_grad()
def _check_model(model: nn.Module, x: Tensor) -> int:
    """Check what the package does not; return the number of classes."""
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode; call model.eval() before attacking it")
    few = x[:_LOOKED_AT]
    with untouched(model):
        logits, one, again = model(x), model(few), model(few)
    if not torch.isfinite(logits).all():
        raise NonFiniteError("logits are not finite; nothing is attacked")
    if not torch.equal(one, again):
        raise ValueError("two forward passes differ; AutoAttack means nothing for a random net, use pgd with draws=20")
    return int(logits.shape[1])


def _engine(model: nn.Module, threat: Threat, attack: str, seed: int, device: torch.device) -> Any:
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError(
            "AutoAttack and Square need pyautoattack, which is missing; say pip install 'perturblab[robust]'"
        ) from error
    return AutoAttack(
        model,
        attacks=[attack],
        device=device,
        eps=threat.eps,
        norm=_NORMS[threat.norm],
        seed=seed,
        version="custom",
    )


def _set_effort(engine: Any, queries: int, classes: int) -> None:
    """Set what the package sets for its standard version only."""
    engine.apgd.n_restarts = engine.fab.n_restarts = engine.apgd_targeted.n_restarts = 1
    engine.fab.n_target_classes = engine.apgd_targeted.n_target_classes = min(_TARGETS, classes - 1)
    engine.square.n_queries = queries


class _Contiguous(nn.Module):
    """A net for a package that views images and gradients as rows, which channels-last order does not allow.

    Args:
        net: from images to logits.
        like: (N, C, H, W), in the order that the net is fastest with.
    """

    def __init__(self, net: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.net = net
        self.memory_format = torch.contiguous_format if like.is_contiguous() else torch.channels_last
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        rows = x.flatten(1).view(x.shape)  # on the way back the gradient becomes rows too, and so contiguous
        logits: Tensor = self.net(rows.contiguous(memory_format=self.memory_format))
        return logits.float()  # under autocast the package would put them into tensors of the images' type


@contextmanager
def _fenced(model: nn.Module) -> Iterator[None]:
    """Keep the package's messages, its hand on the tracer and FAB's on the parameters' gradients inside.

    What its messages would say, the masking checks say.
    """
    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    disabled, logger.disabled = logger.disabled, True
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        logger.disabled = disabled
        sys.settrace(trace)
