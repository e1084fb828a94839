"""Rates of this machine: matrix products and copies."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch


def rates(device: str, size: int = 2048, repetitions: int = 9) -> dict[str, float]:
    """Measure median rates: GFLOP/s of a square matrix product in both precisions, GB/s of a copy (read and write)."""
    medians = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(size, size, device=device).to(dtype)
        medians[f"matrix product {name}, GFLOP/s"] = 2 * size**3 / _median(partial(torch.mm, a, a), repetitions) / 1e9
    source = torch.zeros(64 * 2**20, device=device)
    target = torch.empty_like(source)
    medians["copy, GB/s"] = 2 * source.nbytes / _median(lambda: target.copy_(source), repetitions) / 1e9
    return medians


def _median(work: Callable[[], object], repetitions: int) -> float:
    times = []
    for _ in range(repetitions + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
