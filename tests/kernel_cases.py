"""Inputs of the perturbation kernels, their exact results, and how results are compared.

Errors are the largest difference over the largest magnitude of a tensor.
"""

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from nets import seeded
from perturblab.layers import ACTIVATIONS, activation
from perturblab.layers.kernels import build, chunked, fused, native, perturb_conv2d, published, reference

Case = dict[str, Tensor]
Path2d = Callable[..., Tensor]
PLACES = ("x", "masks", "weight", "bias")
LEVEL = 0.1  # no power of two: level * mask has to be rounded
# float32 is good to 6e-8 a rounding. In a small case the reference may be exact by luck, while the same sum in another
# order, or an exp of another library (1 or 2 units in the last place), has a handful of roundings; no more than that.
FLOOR = 3e-7
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler: there is no native path")


def case(
    shape: tuple[int, ...] = (3, 5, 4, 3), nmasks: int = 3, ratio: int = 2, kind: str = "unique", seed: int = 0
) -> Case:
    """Features (N, C, H, W), masks, weights, bias and a gradient; weights and gradient off 0, or sums cancel."""
    batch, channels, *place = shape
    sizes: dict[str, tuple[tuple[int, ...], float, float]] = {  # shape, scale, mean
        "x": (shape, 1, 0),
        "masks": (
            (1 if kind == "shared" else channels, nmasks, *((1, 1) if kind == "constant" else place)),
            1 / LEVEL,
            0,
        ),
        "weight": ((channels * ratio, nmasks, 1, 1), 1, 0.5),
        "bias": ((channels * ratio,), 0.1, 0),
        "dy": ((batch, channels * ratio, *place), 1, 0.5),
    }
    generator = seeded(seed)
    return {name: torch.randn(size, generator=generator) * scale + off for name, (size, scale, off) in sizes.items()}


def typed(given: Case, dtype: torch.dtype, names: tuple[str, ...] = (*PLACES, "dy")) -> Case:
    return {name: v.to(dtype) if name in names else v for name, v in given.items()}


def outcome(path: Path2d, given: Case, act: Any, *, frozen: tuple[str, ...] = (), outside: bool = False) -> Case:
    """The output and every gradient that is wanted, also that of a trained slope."""
    act, leaves = copy.deepcopy(act), {name: given[name].detach().requires_grad_(name not in frozen) for name in PLACES}
    y = path(**leaves, level=LEVEL, act=act, outside=outside)
    named = {**leaves, **(dict(act.named_parameters(prefix="act")) if isinstance(act, nn.Module) else {})}
    wanted = {name: leaf for name, leaf in named.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(y, list(wanted.values()), given["dy"].to(y.dtype))
    return {"y": y.detach(), **dict(zip(wanted, gradients, strict=True))}


def reference_conv2d(*tensors: Tensor, **named: Any) -> Tensor:
    """The published computation, with all the maps."""
    with published():
        return perturb_conv2d(*tensors, **named)


def chunked_conv2d(x: Tensor, masks: Tensor, *tensors: Tensor, **named: Any) -> Tensor:
    """The published computation of one piece after the other."""
    tensors += tuple(named.pop(name) for name in ("weight", "bias") if name in named)
    return chunked.in_pieces(lambda x, masks: reference_conv2d(x, masks, *tensors, **named), x, masks)


def truth(given: Case, act: Any, **options: Any) -> Case:
    """The published computation in float64, with level x mask rounded as the features' own computation rounds it."""
    double = copy.deepcopy(act).double() if isinstance(act, nn.Module) else act
    exact = typed({**given, "masks": reference.scaled(given["masks"], LEVEL)}, torch.float64)
    found = outcome(lambda level, **named: reference_conv2d(**named), exact, double, **options)
    return {name: v * LEVEL if name == "masks" else v for name, v in found.items()}


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    got, want = got.double(), want.double()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))


def assert_close(got: Case, want: Case, limit: float) -> None:
    assert got.keys() == want.keys()
    errors = {name: error(got[name], want[name]) for name in want}
    assert all(value <= limit for value in errors.values()), errors


def assert_as_exact(got: Case, plain: Case, true: Case) -> None:
    """At most twice as far from the truth as the float32 reference."""
    errors = {name: (error(got[name], true[name]), error(plain[name], true[name])) for name in true}
    assert all(ours <= 2 * theirs + FLOOR for ours, theirs in errors.values()), errors


def assert_same_bits(got: Case, want: Case, but: tuple[str, ...] = ()) -> None:
    assert got.keys() == want.keys()
    assert [name for name in want if name not in but and not torch.equal(got[name], want[name])] == []


def acts() -> dict[str, Any]:
    return {name: activation(name).eval() for name in ACTIVATIONS}


KINDS = ("unique", "shared", "constant")
CHANNELS = st.sampled_from([1, 2, 3, 5, 16, 17, 33, 131, 140])
SIZES = st.tuples(st.tuples(st.integers(1, 17), CHANNELS, st.integers(1, 7), st.integers(1, 7)), st.integers(2, 9))


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ways that are called from now on, in their order."""
    called: list[str] = []

    def spy(module: Any, name: str) -> None:
        real, label = getattr(module, name), f"{module.__name__.rpartition('.')[2]}.{name}"
        monkeypatch.setattr(module, name, lambda *a, **k: [called.append(label), real(*a, **k)][1])

    spy(native, "convolve_natively")
    spy(chunked, "in_pieces")
    spy(reference, "perturb")
    spy(fused, "_bias_map")
    return called


def digest() -> str:
    """A hash of outputs and gradients large enough for torch to use its threads too."""
    found = []
    for act, kind in ((nn.PReLU(), "shared"), (nn.Tanh(), "unique")):
        result = outcome(perturb_conv2d, case((16, 150, 8, 9), kind=kind), act)
        found += [hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest()[:8] for v in result.values()]
    return " ".join(found)
