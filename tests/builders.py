"""Builders shared by the tests: records, points, runs, their tables, and the documents of the repository."""

import base64
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from perturblab import cli
from perturblab.points import Point
from perturblab.records import Record, Study
from perturblab.report.measured import Run
from perturblab.stats import wilson

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
API = (ROOT / "docs" / "api.md").read_text()

# --- records

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(40))).decode()
ROW = {"epoch": 29, "correct": 8512, "total": 10000}
AUDIT = ROW | {"batch_mean": 85.2, "batch_mean_truncated": 84.3, "smoothed": 85.9, "n_batches": 79}
RULE = {"epoch": 12, "batch_mean": 85.4, "rule": "best epoch on test, epoch index > 10"}
FULL = {
    "version": 1,
    "parts": [],
    "config": {"net_type": "noiseresnet18", "nfilters": 64, "lr": 0.1, "milestones": [10, 20], "val_size": None},
    "seed": 0,
    "counts": {
        "last": ROW,
        "best_val": ROW | {"epoch": 20, "correct": 8400},
        "best_test": ROW
        | {"epoch": 12, "correct": 8530, "selection": "selected on the test set", "published_rule": RULE},
    },
    "audit": {"last": AUDIT, "best_smoothed": AUDIT, "best_exact": AUDIT | {"epoch": 12, "correct": 8530}},
    "environment": {
        "packages": {"torch": "2.9.0+cpu"},
        "python": "3.11.7",
        "processor": {"model": "A processor @ 2.0GHz", "features": ["avx2"], "cores": 2},
        "threads": 2,
        "precision": "fp32",
        "compile": "off",
        "device": "cpu",
        "code": "0123456789ab",
        "ranks": 2,
    },
    "data": {
        "train": "CIFAR-10 (JPEG copy)",
        "test": "CIFAR-10 (JPEG copy)",
        "recognised": "cifar10",
        "hashes": {"train": "ab", "test": "cd"},
        "classes": ["airplane", "cat/dog"],
        "sizes": {"train": 50000, "test": 10000},
    },
    "parameters": {"trainable": 11, "frozen": 0, "masks": 64, "macs": 5},
    "masks": [{"layer": "conv1", "shape": [1, 64, 32, 32], "png": PNG}],
    "study": {"setup": "K4", "preset": "cpu"},
    "seconds": 12.5,
    "status": "finished",
}


def make(
    seed: int = 0,
    correct: int = 8500,
    *,
    audited: bool = False,
    status: str = "finished",
    total: int = 10000,
    test: str = "CIFAR-10",
    **config: Any,
) -> Record:
    """Build the record of a run with so many right test images; further arguments become its config."""
    last = {"epoch": 29 if status == "finished" else 4, "correct": correct, "total": total}
    row = last | {"batch_mean": 85.25, "batch_mean_truncated": 84.5, "smoothed": 80.0 + seed, "n_batches": 79}
    best = last | {"correct": correct + 30} if audited else None
    return Record.model_validate(
        {
            "config": {"net_type": "resnet18", "nfilters": 64, "lr": 0.1} | config,
            "seed": seed,
            "counts": {"last": last, "best_test": best},
            "audit": {"last": row, "best_smoothed": row, "best_exact": row} if audited else None,
            "environment": {
                "packages": {},
                "python": "3.11.7",
                "processor": {"model": "A", "features": [], "cores": 2},
                "threads": 2,
                "precision": "fp32",
                "compile": "off",
                "device": "cpu",
            },
            "data": {
                "train": "CIFAR-10",
                "test": test,
                "recognised": "cifar10",
                "hashes": {"train": "ab", "test": test},
                "classes": ["a", "b"],
                "sizes": {"test": total},
            },
            "parameters": {"trainable": 11173962, "frozen": 0, "masks": 0, "macs": 1},
            "seconds": 1.0,
            "status": status,
        }
    )


def columns(text: str) -> list[dict[str, str]]:
    """Read a Markdown table, independently of its writer: one dict per row."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


# --- points of attacks

CHECK: dict[str, Any] = {
    "key": ["s", 200, "w", "linf", 0.1, {"steps": 50}, "", "", 1],
    "flags": [],
    "findings": {
        **{"images": 200, "classes": 10, "eps": 0.1, "zero": 0, "bad": 0, "softmax": False, "saturated": 8},
        **{
            "random": False,
            "large": 0,
            "fgsm": 90,
            "pgd": 70,
            "doubled": 70,
            "margin": 0,
            "black_box": {},
            "trace": [],
        },
    },
}
CONTROL = "resnet18, 64 filters"


def point(attack: str, eps: float, right: Sequence[int], **given: Any) -> Point:
    """Build a point of an attack from the images that are right, first image first."""
    bits = int("".join(map(str, right)), 2)
    settings: dict[str, Any] = {"seed": 1}
    known = {"norm": "linf", "subset": "s", "weights": "w", "settings": settings} | given
    return Point(
        attack=attack,
        eps=eps,
        correct=sum(right),
        total=len(right),
        wilson=wilson(sum(right), len(right)),
        answers=f"{bits:0{-(-len(right) // 4)}x}",
        **known,
    )


def attacked(defence: str, rights: Sequence[Sequence[int]], **given: Any) -> list[Run]:
    """Build one run per seed: every image right at 0, and these under FGSM at 0.1."""
    config = {} if defence == "none" else {"defence": defence}
    return [
        Run(make(seed, **config), (), (point("fgsm", 0.0, [1] * len(right)), point("fgsm", 0.1, right, **given)))
        for seed, right in enumerate(rights)
    ]


PLAIN = attacked("none", [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
BATCHOUT = attacked(
    "batchout",
    [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]],
    flags=("zero gradients",),
)


# --- runs of studies


def run(setup: str, seed: int, correct: int = 9000, *, preset: str = "cpu", **given: Any) -> Run:
    """Build a run of a study with so many of 10,000 test images right."""
    record = make(seed, correct).model_copy(update={"study": Study(setup=setup, preset=preset)})
    return Run(record, tuple(given.get("metrics", ())), tuple(given.get("points", ())))


def epochs(exact: Sequence[float], **more: float) -> list[Mapping[str, Any]]:
    """Build audited epochs with these exact accuracies."""
    return [{"epoch": i, "train_loss": 1.0, "exact": value, "total": 10, **more} for i, value in enumerate(exact)]


# --- commands and documents


def tell(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command line; return its exit code, its stdout and its stderr."""
    return cli.main(shlex.split(line)), *capsys.readouterr()


def listed() -> dict[str, list[str]]:
    """Public names by module, as docs/api.md lists them."""
    public = API.split("## What is public")[1].split("## What may change")[0]
    found: dict[str, list[str]] = {"perturblab.layers": []}
    layers, elsewhere = public.split("### Elsewhere")
    for row in re.findall(r"^\| (`[^|]+) \|", layers, re.MULTILINE):
        found["perturblab.layers"] += re.findall(r"`(\w+)`", row)
    for module, names in re.findall(r"^\| `([\w.]+)` \| (.+) \|$", elsewhere, re.MULTILINE):
        found[module] = re.findall(r"`(\w+)`", names)
    return found
