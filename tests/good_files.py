"""Good files of every kind, made once: runs, data sets and documents that bad input is made from."""

import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_folders import cifar10_folder, idx_folder, image_folder, parquet_folder
from perturblab.cli import main
from perturblab.records.paths import FAILED_FILE
from perturblab.report.groups_table import BEGIN, END
from perturblab.runs import checkpoint
from perturblab.system import exit_codes

DIGITS = 597  # test images of the bundled digits
SMALL = "--net-type lenet --nfilters 2 --nepochs 1 --batch-size 2 --nthreads 1 --quiet"
TINY = f"--dataset-train digits {SMALL} --train-size 20 --batch-size 10"
ATTACK = "--attacks fgsm,pgd,uniform --eps 0,0.1 --subset 20 --steps 2 --restarts 1 --check-subset 10 --quiet"
RUNS = {
    "run": f"{TINY} --audit --val-size 5 --optim-method Adam",
    "mixed": f"{TINY} --defence batchout",
    "byclass": f"{TINY} --defence batchout --batchout-partners different-class",
    "redrawn": f"{TINY} --redraw_masks always",
    "colour": f"--dataset-train PICTURES {SMALL} --train-size 4",
}
Content = dict[str, Any]


def make(world: Path) -> None:
    """Fill an empty folder with good runs, data sets and documents."""
    _data_sets(world)
    for name, flags in RUNS.items():
        flags = flags.replace("PICTURES", shlex.quote(str(world / "pictures")))
        _done(f"train {flags} --out {shlex.quote(str(world / name))}")
    for name in ("stopped", "cosine", "longer", "begun"):
        (world / name).mkdir()
        shutil.copy(world / "run/masks.safetensors", world / name)
        shutil.copy(world / "run/checkpoint.pt", world / name)
        change_checkpoint(world / name / "checkpoint.pt", CHANGED_RUNS[name])
    for name in ("empty", "nonsense", "failed"):
        (world / name).mkdir()
    for name, text in {
        **{"file": "text", "nonsense/notes.txt": "text", "without.md": "a text\n", "swapped.md": f"{END}\n{BEGIN}\n"},
        **{"one.md": BEGIN, "twice.md": f"{BEGIN}{END}" * 2, "there.onnx": "not a net", f"failed/{FAILED_FILE}": "[]"},
    }.items():
        (world / name).write_text(text)


def attack(run: Path) -> None:
    """Leave points and checks of attacks in a run's folder."""
    _done(f"attack {shlex.quote(str(run))} {ATTACK}")


def _done(line: str) -> None:
    assert main.main(shlex.split(line)) == exit_codes.DONE, line


# --- checkpoints


def seal(content: Content) -> Content:
    """Give changed contents the digest that belongs to them, as far as they have one: senseless, not damaged."""
    content = {name: value for name, value in content.items() if name != "digest"}
    try:
        return {**content, "digest": checkpoint.digest(content)}
    except (RuntimeError, NotImplementedError):  # tensors that nobody can read
        return {**content, "digest": "0" * 64}


def change_checkpoint(path: Path, change: Callable[[Content], Any]) -> None:
    """Change a checkpoint in place and seal it anew."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(seal(content), path)


def _after_one_step(content: Content) -> None:
    reached = {"loss": 23.0, "correct": 1, "images": 10, "seconds": 0.1}
    content["state"] |= {"step": 1, "permutation": torch.arange(15), "reached": reached}


def _stopped(content: Content) -> None:
    """Stop the run after the first step of two."""
    _after_one_step(content)
    content["state"]["epoch"] = 0
    content |= {"rows": [], "correct": []}


def _longer(content: Content) -> None:
    content["config"]["nepochs"] = 3


def _begun(content: Content) -> None:
    """Stop a run of three epochs in the second."""
    _longer(content)
    _after_one_step(content)


CHANGED_RUNS: dict[str, Callable[[Content], Any]] = {
    "stopped": _stopped,
    "cosine": lambda content: content["config"].update(optimizer_schedule="cosine"),
    "longer": _longer,
    "begun": _begun,
}

# --- data sets


def _data_sets(world: Path) -> None:
    """Make good sets, sets that do not go together, and folders that hold several or half a set."""
    image_folder(world / "pictures", shape=(8, 8, 3))
    image_folder(world / "larger", shape=(9, 9, 3))
    image_folder(world / "others", classes=("cat", "cow"), shape=(8, 8, 3))
    image_folder(world / "one_class", classes=("cat",))
    image_folder(world / "damaged")
    (world / "damaged/train/dog/1.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    parquet_folder(world / "parquet", shape=(8, 8, 3))
    cifar10_folder(world / "cifar", dump=pickle.dumps)
    idx_folder(world / "idx", size=8)
    idx_folder(world / "packed", size=8, pack=True)
    parquet_folder(world / "several/cifar10", shape=(8, 8, 3))
    idx_folder(world / "several/raw", size=8)
    image_folder(world / "several/cifar10-copy")
    image_folder(world / "twofold/mnist", classes=("0", "1"))
    idx_folder(world / "twofold/mnist/raw", size=8)
    (world / "incomplete").mkdir()
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        shutil.copy(world / "idx" / name, world / "incomplete")
    image_folder(world / "wrong/cifar10", shape=(8, 8, 3))
    for name in ("mnist-a", "mnist-b"):
        image_folder(world / "copies" / name, classes=("0", "1"))
