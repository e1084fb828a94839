"""Builders shared by the tests: records, points, runs, their tables, and the documents of the repository."""

import base64
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from perturblab.cli import main
from perturblab.records.metrics import Row
from perturblab.records.points import Point
from perturblab.records.record import Record, Study
from perturblab.records.results import Result
from perturblab.report.claims import ClaimFinding
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
    "numerics": 1,
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

# What the masking checks find on 1,000 images of a net that raises no flag.
CLEAN: dict[str, Any] = {
    **{"images": 1000, "classes": 10, "eps": 0.1, "zero": 0, "bad": 0, "softmax": False, "saturated": 0},
    **{"random": False, "large": 0, "fgsm": 500, "pgd": 400, "doubled": 400, "margin": 0},
}
CHECK: dict[str, Any] = {
    "key": ["s", 200, "w", "linf", 0.1, {"steps": 50}, "", "", 1],
    "flags": [],
    "findings": CLEAN
    | {"images": 200, "saturated": 8, "fgsm": 90, "pgd": 70, "doubled": 70, "black_box": {}, "trace": []},
}
TOTAL = 13  # not a multiple of 4: the first digit of the answers holds one image
CONTROL = "resnet18, 64 filters"


def as_hex(right: Sequence[object]) -> str:
    """Write which images are right as the answers of a point, first image first."""
    bits = "".join("1" if value else "0" for value in right)
    return f"{int(bits, 2):0{-(-len(bits) // 4)}x}"


def point(
    attack: str = "fgsm", eps: float = 0.1, right: Sequence[object] | int = 7, *, total: int = TOTAL, **given: Any
) -> Point:
    """Build a point of an attack from the images that are right: one by one, or the first so many of a total."""
    right = [k < right for k in range(total)] if isinstance(right, int) else list(map(bool, right))
    counts = {"correct": sum(right), "total": len(right), "wilson": wilson(sum(right), len(right))}
    known = {"norm": "linf", "answers": as_hex(right), "subset": "s", "weights": "w", "settings": {"seed": 1}}
    return Point(attack=attack, eps=eps, **(counts | known | given))


def curve(attack: str, *correct: int, total: int = 1000, **given: Any) -> list[Point]:
    """Build the points of an attack at radii 0, 0.1, 0.2, ..., with so many images right."""
    return [point(attack, k / 10, count, total=total, **given) for k, count in enumerate(correct)]


def attacked(defence: str, rights: Sequence[Sequence[int]], **given: Any) -> list[Result]:
    """Build one run per seed: every image right at 0, and these under FGSM at 0.1."""
    config = {} if defence == "none" else {"defence": defence}
    return [
        Result(make(seed, **config), (), (point("fgsm", 0.0, [1] * len(right)), point("fgsm", 0.1, right, **given)))
        for seed, right in enumerate(rights)
    ]


PLAIN = attacked("none", [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
BATCHOUT = attacked(
    "batchout",
    [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]],
    flags=("zero gradients",),
)


# --- runs of studies


def run(setup: str, seed: int, correct: int = 9000, *, preset: str = "cpu", **given: Any) -> Result:
    """Build a run of a study with so many of 10,000 test images right."""
    record = make(seed, correct).model_copy(update={"study": Study(setup=setup, preset=preset)})
    return Result(record, tuple(given.get("metrics", ())), tuple(given.get("points", ())))


def metrics_row(**given: Any) -> Row:
    """Build the metrics of one epoch, in which the net knows every training image unless told otherwise."""
    usual = {
        "epoch": 0,
        "lr": 0.1,
        "train_loss": 1.0,
        "train_accuracy": 100.0,
        "seconds": 1.0,
        "images_per_second": 9.0,
    }
    return Row(**(usual | {"val_loss": None, "val_accuracy": None} | given))


def epochs(exact: Sequence[float], **more: float) -> list[Row]:
    """Build audited epochs with these exact accuracies."""
    return [metrics_row(epoch=i, exact=value, total=10, **more) for i, value in enumerate(exact)]


def runs(setup: str, counts: Sequence[int], **given: Any) -> list[Result]:
    """Build one run per seed, counted from 1."""
    return [run(setup, seed, correct, **given) for seed, correct in enumerate(counts, 1)]


def finding_of(found: Sequence[ClaimFinding], name: str) -> ClaimFinding:
    """Find the finding of one claim."""
    return next(finding for finding in found if finding.claim.id == name)


# --- commands and documents

LENET = "--dataset-train digits --net-type lenet --nfilters 2 --train-size 20 --batch-size 10 --nthreads 1"
ONE_EPOCH = f"{LENET} --nepochs 1"


class Told(NamedTuple):
    """The exit code of a command and its two streams."""

    code: int
    out: str
    err: str

    @property
    def points(self) -> list[dict[str, Any]]:
        """Standard output, which holds nothing but the points of an attack as JSON."""
        assert self.code == 0, self.err
        found: list[dict[str, Any]] = json.loads(self.out)
        return found


Tell = Callable[[str], Told]


def command(line: str) -> int:
    """Run a command line; signals sent to the tests do not stop it."""
    return main.main(shlex.split(line), stop=lambda: False)


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    """Another process at work in a folder, until it is killed."""
    code = (
        "import time\nfrom pathlib import Path\nfrom perturblab.system.files import locked\n"
        f"with locked(Path({str(folder)!r}), 'busy'):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        try:
            yield
        finally:
            other.kill()


def content(folder: Path) -> dict[str, str]:
    """Every path below a folder, with a hash of the file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def listed() -> dict[str, list[str]]:
    """Public names by module, as docs/api.md lists them."""
    public = API.split("## Public names")[1].split("## Stability")[0]
    found: dict[str, list[str]] = {}
    for part in public.split("\n### ")[1:]:
        for row in re.findall(r"^\| (`.+) \|$", part, re.MULTILINE):
            cells = [re.findall(r"`([\w.]+)`", cell) for cell in row.split(" | ")]
            module, names = (
                (cells[0][0], cells[1]) if part.startswith("Elsewhere") else (re.split(r"[:\n]", part)[0], cells[0])
            )
            found.setdefault(module, []).extend(names)
    return found
