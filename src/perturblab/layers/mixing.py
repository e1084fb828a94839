"""A BatchOut site: its settings, its random draws, the data that the sites of one step share, and the layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from perturblab.layers.batchout import batchout, equal_norm_noise
from perturblab.layers.magnitude import Magnitude, parse_magnitude
from perturblab.layers.partners import draw_partners
from perturblab.records.choices import EtaPer, MixedIn, Rows, Shared, check_choice

NOISE = "noise"
Mix = Callable[[Tensor], Tensor]
Across = Callable[[Mix, Tensor, bool], Tensor]


@dataclass(frozen=True)
class Mixing:
    """Settings of a BatchOut site.

    Args:
        eta: magnitude: a number, or what `parse_magnitude` reads.
        k: rows that are moved: a count, or a fraction of the batch in [0, 1] (rounded down).
        rows: which: "first", as in the paper, which relies on shuffled batches, or "random" ones at each call.
        partners: one of `PARTNERS`, or "noise" for the paper's baseline of random noise of equal norm.
        eta_per: magnitudes are drawn once a "call", or for every "image".
        shared: what the sites share within one step (see `batch_step`): "none", "partners" (and rows), "eta", "both".
            Of "eta" they share the draw, which each site reads in its own distribution: constants stay what they are.
        detach: the added part is a constant in the backward pass.
        inference: moves in eval mode too; by default a site is the identity there.

    Raises:
        ValueError: a setting is out of range.
    """

    eta: Magnitude | float | str = 0.1
    k: int | float = 0.5
    rows: str = "first"
    partners: str = "replacement"
    eta_per: str = "call"
    shared: str = "none"
    detach: bool = True
    inference: bool = False

    def __post_init__(self) -> None:
        _ = self.magnitude  # a mistake in it is told at once
        if self.k < 0 or (isinstance(self.k, float) and not self.k <= 1):
            raise ValueError(f"k is {self.k}; choose a count of rows, or a fraction in [0, 1] such as 0.5")
        check_choice("rows", self.rows, Rows)
        check_choice("partners", self.partners, MixedIn)
        check_choice("eta_per", self.eta_per, EtaPer)
        check_choice("shared", self.shared, Shared)

    @property
    def magnitude(self) -> Magnitude:
        """Distribution of eta."""
        return self.eta if isinstance(self.eta, Magnitude) else parse_magnitude(self.eta)

    def moved(self, count: int) -> int:
        """Return how many of ``count`` rows are moved, at most all."""
        if not isinstance(self.k, float):
            return min(self.k, count)
        return int(round(self.k * count, 9))  # 0.29 * 100 is a little below 29 in binary


@dataclass
class Step:
    """State shared by the sites of one forward pass."""

    labels: Tensor | None = None
    active: bool | None = None
    partners: Tensor | None = None
    towards: int | None = None
    detach: bool | None = None
    across: Across | None = None
    drawn: dict[str, Any] = field(default_factory=dict)


_STEP: ContextVar[Step | None] = ContextVar("perturblab_batch_step", default=None)


@contextmanager
def batch_step(
    labels: Tensor | None = None,
    *,
    active: bool | None = None,
    partners: Tensor | None = None,
    towards: int | None = None,
    detach: bool | None = None,
    across: Across | None = None,
) -> Iterator[Step]:
    """Give the sites of the forward passes inside what their input does not hold.

    Args:
        labels: of the batch, int64 (N,), for partners by class; by default those of the step around this one.
        active: True moves rows in eval mode too, False in no mode; by default as the site's mode says.
        partners: int64 (N,), used by every site instead of drawn ones, for all rows; a row that is its own partner
            stays as it is. A site that adds noise goes on with it.
        towards: this row of the batch is the partner of all rows, which all sites move, each by one magnitude; noise is
            the same for all rows, too. What becomes of a row then depends on this one and on no other row beside it.
        detach: in place of the sites' own; False gives the true derivative, which an attack needs.
        across: where the batch lies on several processes: from what a site does to the whole batch (N, ...), this
            process's rows (n, ...), and whether those of others are constants in the backward pass, to this process's
            rows of the result. Labels and partners are then those of the whole batch.

    Yields:
        The step; sites that share their draws keep them there until it ends.
    """
    outer = _STEP.get()
    if labels is None and outer is not None:
        labels, across = outer.labels, across or outer.across
    step = Step(labels, active, partners, towards, detach, across)
    token = _STEP.set(step)
    try:
        yield step
    finally:
        _STEP.reset(token)


def mix(x: Tensor, mixing: Mixing, counter: Tensor, *, training: bool) -> Tensor:
    """Move rows of features as a site does.

    Args:
        x: features, (N, ...).
        mixing: the site's settings.
        counter: int64 (2,): the site's seed, and its number of draws, which is moved on.
        training: the site's mode.

    Returns:
        (N, ...); ``x`` itself where the site is not active or moves no row.

    Raises:
        ValueError: labels or a step are needed, and there are none.
    """
    step = _STEP.get()
    active = training or mixing.inference
    if step is not None and step.active is not None:
        active = step.active
    if not active:
        return x
    detach = mixing.detach if step is None or step.detach is None else step.detach
    if step is not None and step.across is not None:
        return step.across(lambda whole: _mixed(whole, mixing, counter, step, detach=detach), x, detach)
    return _mixed(x, mixing, counter, step, detach=detach)


def _mixed(x: Tensor, mixing: Mixing, counter: Tensor, step: Step | None, *, detach: bool) -> Tensor:
    if mixing.moved(len(x)) == 0 and _given(mixing, step) is None and not _is_alike(step):
        return x
    rows, chosen, eta = _draw(x, mixing, counter, step)
    if mixing.partners == NOISE:
        return equal_norm_noise(x, chosen, eta, rows, detach=detach)
    return batchout(x, chosen, eta, rows, detach=detach)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _draw(x: Tensor, mixing: Mixing, counter: Tensor, step: Step | None) -> tuple[Tensor | None, Tensor, Tensor]:
    """Rows (K,), or None for the first K; their partners (K,) or noise (K, ...), and magnitudes (K,) or ()."""
    if mixing.shared != "none" and step is None:
        raise ValueError(f"shared is {mixing.shared!r} and there is no step; call the model in `with batch_step():`")
    generator = next_draw(counter)

    def once(name: str, draw: Callable[[], Any], *, shared: bool) -> Any:
        if step is None or not shared:
            return draw()
        if name not in step.drawn:
            step.drawn[name] = draw()
        return step.drawn[name]

    together = mixing.shared in ("partners", "both") and mixing.partners != NOISE
    rows, chosen = once("partners", lambda: _rows_and_partners(x, mixing, step, generator), shared=together)
    one = mixing.eta_per == "call" or _is_alike(step)
    if mixing.shared not in ("eta", "both"):
        magnitudes = mixing.magnitude.draw(1 if one else len(chosen), generator)
        return rows, chosen, magnitudes[0] if one else magnitudes
    # What is shared is the draw, not the magnitude: every site has a distribution of its own.
    shares = once("eta", lambda: torch.rand(len(x), dtype=torch.float64, generator=generator), shared=True)
    return rows, chosen, mixing.magnitude.at(shares[0] if one else shares[: len(chosen)])


def _given(mixing: Mixing, step: Step | None) -> Tensor | None:
    """Return the partners that the step gives, if any; noise has none."""
    return None if step is None or mixing.partners == NOISE else step.partners


def _is_alike(step: Step | None) -> bool:
    """Return True if all rows are moved towards one row of the batch."""
    return step is not None and step.towards is not None


def _rows_and_partners(
    x: Tensor, mixing: Mixing, step: Step | None, generator: torch.Generator
) -> tuple[Tensor | None, Tensor]:
    count, moved = len(x), mixing.moved(len(x))
    if step is not None and step.towards is not None:
        if not -count <= step.towards < count:
            raise ValueError(f"towards is {step.towards}; expected one of the {count} rows of the batch")
        if mixing.partners == NOISE:
            return None, torch.randn(1, *x.shape[1:], generator=generator).to(x).expand_as(x)
        return None, torch.full((count,), step.towards % count, device=x.device)
    if (given := _given(mixing, step)) is not None:
        if given.shape != (count,):
            raise ValueError(f"partners are {tuple(given.shape)}; expected ({count},), one for each row of the batch")
        return torch.arange(count, device=x.device), given.to(x.device)
    rows = None if mixing.rows == "first" else torch.randperm(count, generator=generator)[:moved].to(x.device)
    if mixing.partners == NOISE:
        return rows, torch.randn(moved, *x.shape[1:], generator=generator).to(x)
    labels = None if step is None or step.labels is None else step.labels.to(x.device)
    drawn = draw_partners(mixing.partners, count, labels, generator=generator)
    return rows, drawn.to(x.device)[slice(moved) if rows is None else rows]


def new_counter(generator: torch.Generator) -> Tensor:
    """Make the seed and the number of draws of a new site, int64 (2,).

    Args:
        generator: decides the seed.
    """
    seed = torch.randint(2**62, (1,), generator=generator, device="cpu")
    return torch.cat([seed, torch.zeros_like(seed)])


def next_draw(counter: Tensor) -> torch.Generator:
    """Return the stream of the next draw, and add one to the counter.

    Args:
        counter: of shape (2,), int64, as `new_counter` makes it.
    """
    generator = torch.Generator().manual_seed(int(counter.sum()) % 2**63)
    counter[1] += 1
    return generator


class BatchOut(nn.Module):
    """BatchOut as a layer: identity in eval mode, never in place.

    The paper puts it after a convolution or linear layer and before its ReLU. What it draws is decided by a seed and a
    counter that are saved with the model, so that a resumed run goes on bit for bit.

    Args:
        mixing: what it does.
        generator: decides what it draws.

    Reference:
        BatchOut, ICVGIP 2018.
    """

    draws: Tensor

    def __init__(self, mixing: Mixing | None = None, *, generator: torch.Generator) -> None:
        super().__init__()
        self.mixing = mixing or Mixing()
        self.register_buffer("draws", new_counter(generator))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, ...) to features (N, ...)."""
        return mix(x, self.mixing, self.draws, training=self.training)

    def extra_repr(self) -> str:
        return str(self.mixing)
