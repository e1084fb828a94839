"""The benchmarks measure what they say: small cases, and a process that dies."""

import multiprocessing
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from benchmarks import accelerator, attacks, cases, equal, loop, rates
from benchmarks.__main__ import table
from benchmarks.cases import CASES, WAYS, Layer, Training, Way
from benchmarks.worker import Worker

NET = Training("lenet", {"nfilters": 3, "nmasks": 2, "dropout": 0.0}, 4)


@dataclass(frozen=True)
class Greedy:
    """A case that does not fit above a batch of 2."""

    batch: int

    def step(self, way: Way, device: str) -> cases.Step:
        if self.batch > 2:
            raise MemoryError
        return lambda: None


@pytest.mark.parametrize("way", [name for name, way in WAYS.items() if not way.compile])
def test_every_way_of_a_layer_and_a_net_takes_a_step(way: str) -> None:
    for case in (Layer(2, batch=2, channels=3, size=4), NET):
        case.step(WAYS[way], "cpu")()


def test_the_reference_keeps_its_masks_in_the_published_order_and_computes_the_same() -> None:
    found = []
    for way in (Way(published=True), Way()):
        torch.manual_seed(0)  # as a worker does
        seen: list[torch.Tensor] = []
        layer = Layer(2, batch=2, channels=3, size=4)
        real = torch.autograd.grad

        def spy(y: torch.Tensor, wanted: Any, dy: torch.Tensor, seen: Any = seen, real: Any = real) -> Any:
            seen += [y, *real(y, wanted, dy)]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "grad", spy)
            layer.step(way, "cpu")()
        found.append(seen)
    assert len(found[0]) == 4  # output; gradients of input, weight, bias
    for reference, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


def test_a_worker_times_repetitions_and_tells_its_memory() -> None:
    worker = Worker(Layer(2, batch=2, channels=3, size=4), "fp32", "cpu", 1)
    worker.repeat(2)
    worker.repeat(1)
    memory = worker.end()
    assert len(worker.times) == 3
    assert min(worker.times) > 0
    assert 0 < memory["extra"] < memory["peak"] < 2**31


def test_a_batch_that_does_not_fit_is_halved(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = multiprocessing.get_context("fork")  # the fresh processes of the test above take seconds to start
    monkeypatch.setattr("benchmarks.worker.multiprocessing.get_context", lambda _method: fork)
    batch, rate = accelerator.largest(Greedy(4), "fp32", "cpu", 4, 1)  # type: ignore[arg-type]
    assert batch == 2
    assert rate is not None
    assert "MemoryError" in capfd.readouterr().err


def test_rates_of_the_loop_and_of_the_machine_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEPS", 3)
    found = loop.overhead(pairs=2, threads=1)
    assert found["interval"][0] <= found["median"] <= found["interval"][1]
    assert 0 < found["augmentation share"] < 0.5
    assert all(rate > 0 for rate in rates.rates("cpu", size=64, repetitions=1).values())


@pytest.mark.parametrize("values", [list(range(40)), list(range(7))])
def test_interval_of_a_median_is_the_binomial_one(values: list[float]) -> None:
    """With 40 values the 14th and the 27th enclose the median with at least 95 % (Conover, table A3)."""
    low, high = loop._median_interval(values)
    assert (low, high) == ((13, 26) if len(values) == 40 else (0, 6))


def test_first_losses_of_a_masked_net_agree_with_the_published_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal, "NETS", {"lenet": equal.NETS["lenet"]})
    (found,) = equal.equal(nepochs=2, seeds=(1,))
    assert found["net"] == "lenet"
    assert found["gap"] < 1e-3
    assert found["fast"] == found["published"]


def test_every_way_of_an_attack_counts_what_the_others_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """FGSM is one formula, so its counts agree exactly; the bare passes count the clean images."""
    monkeypatch.setattr(attacks, "EPOCHS", 1)
    found = attacks.compare(pairs=1, threads=1, images=60)
    counts = {way: of["correct"] for way, of in found["FGSM"].items()}
    assert counts["ours"] == counts["foolbox"] == counts["ART"]
    assert 0 < counts["ours"] < counts["bare passes"], "a net of which something can be lost, and is left"
    iterated = {way: of["correct"] for way, of in found["PGD"].items()}
    assert 0 < iterated["ours"] < iterated["bare passes"]
    assert max(iterated[way] for way in ("ours", "foolbox", "ART")) <= iterated["ours"] + 6 <= counts["bare passes"]
    assert all(len(of["times"]) == 1 for of in found["PGD"].values())
    text = attacks.table(found)
    assert all(f"| {name} | {way} | " in text for name in found for way in counts)
    assert "| FGSM | ours | " in text
    assert text.count(" | 1.000 |") >= 2


@pytest.mark.parametrize("steps", [1, 3])
def test_every_way_makes_the_passes_that_it_needs_and_no_more(steps: int) -> None:
    """So that a ratio of times compares what is done: as many passes for each gradient, and one to count."""

    class Counting(torch.nn.Module):
        passes = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            return torch.stack([x.flatten(1).sum(1), 30 * x[:, 0, 0, 0], *[0 * x[:, 0, 0, 0]] * 8], 1)

    model = Counting().eval()
    x, y = torch.rand(20, 1, 5, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(20, dtype=torch.long)
    found = {}
    for way, evaluate in attacks.ways(model, x, y, steps).items():
        model.passes = 0
        evaluate()
        found[way] = model.passes
    assert found["ours"] == found["foolbox"] == found["bare passes"] == steps + 1
    assert found["ART"] >= steps + 1


def test_table_has_a_row_for_every_case_and_way() -> None:
    measured = {"times": [1.0, 2.0], "first": 3.0, "peak": 2**30, "extra": 2**29}
    result = {
        "environment": {"processor": {"model": "P"}, "threads": 2},
        "rates": {"copy, GB/s": 1.0},
        "cases": {case: dict.fromkeys(("reference", "fp32"), measured) for case in CASES},
    }
    text = table(result)
    assert all(f"| {case} | fp32 | 1.5000 (1.0000 to 2.0000) | 1.0 | 1,024 | 512 | 1/1.0 |" in text for case in CASES)
