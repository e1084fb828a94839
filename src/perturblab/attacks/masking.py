"""Checks that a masked gradient cannot pass for a defence.

An attack that fails proves nothing: its gradients may be zero, noisy or saturated. Each check looks for one sign of
that and raises a flag. A flagged accuracy is an upper bound, not a measure of robustness.

Reference: Athalye, Carlini, Wagner, ICML 2018; Carlini et al., On evaluating adversarial robustness, 2019; the checks
of AutoAttack (Croce, Hein, ICML 2020).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from perturblab.attacks.gradient import Loss, fgsm, input_gradient, pgd, still_right, sum_loss
from perturblab.attacks.noise import gaussian_noise, uniform_noise
from perturblab.attacks.pixels import untouched
from perturblab.attacks.threat import Threat
from perturblab.records.attack_names import Effort
from perturblab.records.checks import Findings

Breaker = Callable[[Tensor, Tensor, Threat, torch.Generator], Tensor]

LARGE = {"linf": 0.5, "l2": 16.0}  # 0.5 can turn every pixel grey
_NO_LOSS = 16.6  # margin of the logits above which cross entropy in float32 is exactly 0


@torch.no_grad()
def is_random(model: nn.Module, x: Tensor) -> bool:
    """Say whether two forward passes of the same images differ.

    Args:
        model: from images to logits; it is left as it was.
        x: (N, C, H, W).
    """
    with untouched(model):
        one, two = model(x), model(x)
    return not torch.equal(one.nan_to_num(), two.nan_to_num())  # NaN in both passes counts as the same


@torch.no_grad()
def is_softmax(model: nn.Module, x: Tensor) -> bool:
    """Say whether a model gives probabilities instead of logits, so that the gradient of the loss vanishes.

    Args:
        model: from images to logits (N, classes).
        x: (N, C, H, W).
    """
    out = model(x).float()
    return bool((out >= -1e-5).all() and (out.sum(1) - 1).abs().max() < 1e-4)


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Highest other logit minus that of the true class, summed over images: it never saturates.

    Args:
        logits: (N, classes).
        y: int64 (N,).

    Returns:
        A single value.

    Reference:
        Carlini, Wagner, Towards evaluating the robustness of neural networks, 2017.
    """
    return -_margins(logits.float(), y).sum()


def _margins(logits: Tensor, y: Tensor) -> Tensor:
    true = logits.gather(1, y[:, None]).squeeze(1)
    return true - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def examine(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    effort: Effort,
    black_boxes: Mapping[str, Breaker] | None = None,
    generator: torch.Generator,
) -> Findings:
    """Look for every sign of a masked gradient.

    Args:
        model: from images in [0, 1] to logits, in eval mode.
        x: (N, C, H, W), in [0, 1].
        y: int64 (N,).
        threat: norm and radius of the checks that have one.
        effort: of PGD, which is doubled to see whether it has converged.
        black_boxes: further attacks without the net's gradient, such as Square or a transfer, by name.
        generator: decides all draws.
    """

    def ascend(within: Threat, times: int = 1, loss: Loss = sum_loss) -> Tensor:
        size = effort.step_size if within is threat else None
        more = replace(effort, steps=times * effort.steps, restarts=times * effort.restarts, step_size=size)
        found = pgd(model, x, y, within, more, loss=loss, generator=generator)
        return still_right(model, found, y)

    trace: list[float] = []

    def traced(logits: Tensor, y: Tensor) -> Tensor:
        loss = sum_loss(logits, y)
        trace.append(float(loss.detach()) / len(y))
        return loss

    gradient, logits = input_gradient(model, x, y)
    right, flat = logits.argmax(1) == y, gradient.flatten(1)
    pgd(model, x, y, threat, replace(effort, restarts=1, early_stop=False), loss=traced, generator=generator)
    fast = still_right(model, fgsm(model, x, y, threat, draws=effort.draws), y)
    iterated, by_margin = ascend(threat), ascend(threat, loss=margin_loss)
    breakers: dict[str, Breaker] = {
        "uniform": lambda x, y, t, g: uniform_noise(model, x, y, t, generator=g),
        "gaussian": lambda x, y, t, g: gaussian_noise(model, x, y, t, generator=g),
        **(black_boxes or {}),
    }
    blind = {name: still_right(model, make(x, y, threat, generator), y) for name, make in breakers.items()}
    return Findings(
        images=len(x),
        classes=logits.shape[1],
        eps=threat.eps,
        zero=int((right & (flat.abs().amax(1) == 0)).sum()),
        bad=int((~torch.isfinite(flat).all(1)).sum()),
        softmax=is_softmax(model, x),
        saturated=int((_margins(logits.float(), y) > _NO_LOSS).sum()),
        random=is_random(model, x),
        large=int(ascend(Threat(threat.norm, LARGE[threat.norm], threat.bounds)).sum()),
        fgsm=int(fast.sum()),
        pgd=int(iterated.sum()),
        doubled=int(ascend(threat, 2).sum()),
        margin=int((iterated & ~by_margin).sum()),
        black_box={name: int((fast & iterated & ~broken).sum()) for name, broken in blind.items()},
        trace=trace[effort.draws - 1 :: effort.draws],  # the last draw of each step
    )
