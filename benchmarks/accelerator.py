"""Images per second at large batches on an accelerator, and of the largest reference that fits."""

import statistics
from dataclasses import replace
from typing import Any

from benchmarks.cases import CASES, Layer, Training
from benchmarks.worker import Worker

EXPERIMENTS = ("experiment 1", "experiment 4", "experiment 6", "experiment 8")


def throughput(device: str, repetitions: int = 10) -> dict[str, Any]:
    """Measure images per second of the four experiments at batch 512, and of experiment 6 by both computations.

    Returns:
        "images a second" by experiment (None: it does not fit); "experiment 6": "ours" at batch 256, "reference" and
        the "batch" it was measured at.
    """
    cases = {name: case for name in EXPERIMENTS for full, case in CASES.items() if full.startswith(name)}
    fast = {name: images_per_second(case, "bf16 compiled", device, 512, repetitions) for name, case in cases.items()}
    sixth = cases["experiment 6"]
    batch, reference = largest(sixth, "reference", device, 256, repetitions)
    ours = images_per_second(sixth, "bf16 compiled", device, 256, repetitions)
    return {"images a second": fast, "experiment 6": {"ours": ours, "reference": reference, "batch": batch}}


def largest(case: Layer | Training, way: str, device: str, batch: int, repetitions: int) -> tuple[int, float | None]:
    """Find the largest batch that fits, halving from ``batch``, and its images per second; 0 and None if none fits."""
    while batch:
        rate = images_per_second(case, way, device, batch, repetitions)
        if rate is not None:
            return batch, rate
        batch //= 2
    return 0, None


def images_per_second(case: Layer | Training, way: str, device: str, batch: int, repetitions: int) -> float | None:
    """Measure the median rate of whole steps in another process; None if it ends early, as with too little memory."""
    worker = Worker(replace(case, batch=batch), way, device, threads=1)
    try:
        worker.repeat(repetitions)
        worker.end()
    except (EOFError, OSError):
        worker.process.join()
        return None
    return batch / statistics.median(worker.times)
