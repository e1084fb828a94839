"""Good files, made once: what the bad inputs are made from."""

import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from faults.case import Case
from faults.forked import clear, start
from perturblab.checkpoint import digest

DIGITS = 597  # test images of the bundled digits
TINY = shlex.split(
    "--dataset-train digits --net-type lenet --nfilters 2 --nepochs 1 --train-size 20 --batch-size 10 --nthreads 1 "
    "--quiet"
)
RUNS = {
    "run": [*TINY, "--audit", "--val-size", "5", "--optim-method", "Adam"],
    "mixed": [*TINY, "--defence", "batchout"],
    "byclass": [*TINY, "--defence", "batchout", "--batchout-partners", "different-class"],
    "redrawn": [*TINY, "--redraw_masks", "always"],
    "colour": ["--dataset-train", "pictures", *TINY[2:], "--train-size", "4", "--batch-size", "2"],
}
ATTACK = shlex.split(
    "--attacks fgsm,pgd,uniform --eps 0,0.1 --subset 20 --steps 2 --restarts 1 --check-subset 10 --quiet"
)


def make(world: Path) -> None:
    """Make the folders that cases copy.

    Args:
        world: an empty folder; afterwards it holds the runs of ``RUNS``, ``pictures`` and what else cases need.
    """
    os.environ |= {
        "PERTURBLAB_CACHE": str(world / "cache"),
        "PERTURBLAB_NATIVE": "0",  # nothing to compile
        "HF_HUB_OFFLINE": "1",
        "HOME": str(world / "home"),
    }
    for name in ("cases", "home", "cache"):
        (world / name).mkdir()
    pictures(world / "pictures")
    for name, flags in RUNS.items():
        _made(world, ["train", *flags, "--out", str(world / name)])
    _made(world, ["attack", str(world / "run"), *ATTACK])
    _stopped(world)


def _stopped(world: Path) -> None:
    """The same run, as if it had been stopped after the first step of two."""
    folder = world / "stopped"
    folder.mkdir()
    content = torch.load(world / "run/checkpoint.pt", weights_only=True)
    reached = {"loss": 23.0, "correct": 1, "images": 10, "seconds": 0.1}
    content["state"] |= {"epoch": 0, "step": 1, "permutation": torch.arange(15), "reached": reached}
    content |= {"rows": [], "correct": []}
    content["digest"] = digest({name: value for name, value in content.items() if name != "digest"})
    torch.save(content, folder / "checkpoint.pt")
    shutil.copy(world / "run/masks.safetensors", folder)


def _made(world: Path, argv: list[str]) -> None:
    argv = [str(world / word) if word == "pictures" else word for word in argv]
    ended = start(Case("good", argv, seconds=120), world).ended()
    if ended.code:
        raise RuntimeError(f"a good command failed: {argv} {ended.err}")
    clear(ended)


def pictures(folder: Path, size: int = 8, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Make an image folder: 2 classes, 3 training and 2 test images of each, in colour."""
    for split, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                picture(number * 40 + k, size).save(folder / split / name / f"{k}.png")
    return folder


def picture(value: int, size: int = 8) -> Image.Image:
    """One RGB picture with a gradient in it."""
    ramp = (np.arange(size * size * 3) * 5 + value).astype(np.uint8)
    return Image.fromarray(ramp.reshape(size, size, 3))
