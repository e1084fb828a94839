"""BatchOut layers to test, and what they did, read from their outputs."""

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nets import seeded
from perturblab.layers import PARTNERS, BatchOut, Mixing, batch_step

SEEDS = st.integers(0, 2**40)
often = settings(max_examples=60, deadline=None, derandomize=True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def units(count: int) -> Tensor:
    """Rows that tell what was done to them: mixed with another, row i holds 1 - eta at i and eta at its partner."""
    return torch.eye(count, dtype=torch.float64)


def layer(seed: int = 0, **mixing: Any) -> BatchOut:
    return BatchOut(Mixing(**mixing), generator=seeded(seed))


def read(out: Tensor) -> list[tuple[int, float] | None]:
    """Find the partner and eta of each row of `units`; None for a row that did not change."""
    found: list[tuple[int, float] | None] = []
    for i, row in enumerate(out.tolist()):
        others = [(j, value) for j, value in enumerate(row) if j != i and value != 0]
        assert len(others) <= 1, "a row is mixed with one other at most"
        assert row[i] == pytest.approx(1 - (others[0][1] if others else 0), abs=1e-15)
        found.append(others[0] if others else None)
    return found


def partners_in(out: Tensor) -> list[int]:
    return [i if got is None else got[0] for i, got in enumerate(read(out))]


def etas_in(out: Tensor) -> list[float]:
    return [got[1] for got in read(out) if got is not None]


def looped(x: Tensor, partners: list[int], etas: list[float], rows: list[int]) -> Tensor:
    """Algorithm 1, value by value: d = x_r - x of the batch as it came, then x + eta d for the rows that are moved."""
    flat = x.flatten(1).tolist()
    out = [list(row) for row in flat]
    for row, partner, eta in zip(rows, partners, etas, strict=True):
        for at, value in enumerate(flat[row]):
            out[row][at] = value + eta * (flat[partner][at] - value)
    return torch.tensor(out, dtype=x.dtype).reshape(x.shape)


KINDS = [*PARTNERS, "noise"]


def sequence(module: nn.Module, calls: int = 3, count: int = 8) -> list[Tensor]:
    x = drawn(count, 4, seed=9)
    outputs = []
    for _ in range(calls):
        with batch_step(torch.arange(count) % 3):
            outputs.append(module(x))
    return outputs


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))
