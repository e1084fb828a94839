"""A process per case and way; it times repetitions on request."""

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.cases import CASES, WAYS, Layer, Training


def serve(connection: Connection, case: Layer | Training, way: str, device: str, threads: int) -> None:
    """Answer every number n with n timings, until None comes; then with the memory."""
    import torch
    import torch._dynamo  # any optimiser or custom operator imports it at its first step

    from perturblab.system.memory import keep_freed_memory

    if not WAYS[way].published:
        keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = case.step(WAYS[way], device)
    before = _memory("VmRSS")
    while (count := connection.recv()) is not None:
        connection.send([_time(step) for _ in range(count)])
    peak = _memory("VmHWM")  # not ru_maxrss, which starts at the parent's
    if device != "cpu":
        before, peak = 0, torch.cuda.max_memory_allocated()
    connection.send({"peak": peak, "extra": peak - before})


def _time(step: Any) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


class Worker:
    """The driver's end of a worker process."""

    def __init__(self, case: Layer | Training, way: str, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, case, way, device, threads), daemon=True)
        self.process.start()
        self.times: list[float] = []
        self.first = 0.0

    def repeat(self, count: int) -> None:
        """Time ``count`` repetitions; the very first, which sets up and compiles, is kept apart."""
        if not self.first:
            self.first = self._ask(1)[0]
        self.times += self._ask(count)

    def _ask(self, count: int) -> list[float]:
        self.connection.send(count)
        times: list[float] = self.connection.recv()
        return times

    def end(self) -> dict[str, int]:
        """End the process; give its peak memory, and the part of it after set-up, in bytes."""
        self.connection.send(None)
        memory: dict[str, int] = self.connection.recv()
        self.process.join()
        return memory


def alternate(case: str, ways: list[str], device: str, threads: int, pairs: int) -> dict[str, Any]:
    """Run one case in several ways, one repetition of each in turn."""
    workers = {way: Worker(CASES[case], way, device, threads) for way in ways}
    for _ in range(pairs):
        for worker in workers.values():
            worker.repeat(1)
    return {way: {"times": w.times, "first": w.first, **w.end()} for way, w in workers.items()}
