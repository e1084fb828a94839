"""Small runs under attack: how the tests make them, measure them and read what is kept."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from builders import Tell
from perturblab.attacks import ATTACKS, PixelModel, Threat, to_pixels
from perturblab.runs import open
from perturblab.system.terminal import Show

_NET = "--dataset-train digits --net-type batchout_mnist --nfilters 8 --dropout 0 --optim-method Adam --nthreads 1"
_LEARNT = f"{_NET} --learning-rate 5e-3 --batch-size 64 --nepochs 10"
_SHORT = "--nepochs 1 --train-size 64 --learning-rate 5e-3 --batch-size 32 --nthreads 1"
RUNS = {
    "plain": _LEARNT,
    "other": f"{_LEARNT} --manual-seed 2",
    "three": f"{_LEARNT} --classes 0,1,2 --normalise",
    "mixed": f"{_LEARNT} --defence batchout --batchout-eta 0.4 --batchout-k 1.0",
    "guarded": f"{_NET} {_SHORT} --defence batchout --batchout-partners different-class",
    "random": f"--dataset-train digits --net-type perturb_resnet18 --nfilters 2 --redraw-masks always {_SHORT} "
    "--optim-method Adam",
}
LITTLE = "--subset 30 --steps 3 --restarts 1 --queries 15 --check-subset 10 --draws 2 --verdicts 3 --nthreads 1"
WEAK = "--attacks fgsm,pgd --eps 0,0.1 --steps 2 --step-size 0.001 --subset 100"
TEST = 597  # test images of the digits


def attack(tell: Tell, run: str, flags: str = "", *, little: str = LITTLE) -> list[dict[str, Any]]:
    return tell(f"attack {run} {little} --json {flags}").points


def kept(folder: Path, name: str = "pgd") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "attacks" / f"{name}.json").read_text())["points"]
    return found


def decoded(point: dict[str, Any]) -> list[bool]:
    """The answers image by image, the first one first."""
    bits = f"{int(point['answers'], 16):0{point['total']}b}"
    assert len(point["answers"]) == math.ceil(point["total"] / 4)
    return [bit == "1" for bit in bits]


def by_key(points: list[dict[str, Any]]) -> dict[tuple[str, float], dict[str, Any]]:
    found = {(p["attack"], p["eps"]): {k: v for k, v in p.items() if k != "seconds"} for p in points}
    assert len(found) == len(points)
    return found


def opened_in_pixels(folder: Path) -> tuple[PixelModel, Tensor, Tensor]:
    """A run's net in pixels and its test images, opened as a user of the library would."""
    run = open.open_trained(folder, Show(quiet=True), {})
    test = run.images.test
    return run.in_pixels.eval(), to_pixels(test.images), test.labels


@contextmanager
def counted() -> Iterator[list[tuple[str, float, int]]]:
    """Which attack is made at which radius on how many images; five images are those of the picture."""
    made: list[tuple[str, float, int]] = []

    def counting(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def spy(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *rest: Any) -> Tensor:
            made.append((name, threat.eps, len(x)))
            return run(model, x, y, threat, *rest)

        return spy

    with pytest.MonkeyPatch.context() as patch:
        for name, known in list(ATTACKS.items()):
            patch.setitem(ATTACKS, name, counting(name, known))
        yield made


def measured(made: list[tuple[str, float, int]]) -> list[tuple[str, float]]:
    return [(name, eps) for name, eps, images in made if images != 5]
