"""Good files of every kind, made once: runs, data sets and documents that bad input is made from."""

import gzip
import io
import json
import pickle
import shlex
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from perturblab.cli import main
from perturblab.records.paths import FAILED_FILE
from perturblab.report.groups_table import BEGIN, END
from perturblab.runs import checkpoint
from perturblab.system import processes

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
    assert main.main(shlex.split(line)) == processes.DONE, line


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


def picture(value: int, size: int = 8) -> Image.Image:
    """Draw an RGB picture with a gradient."""
    ramp = (np.arange(size * size * 3) * 5 + value).astype(np.uint8)
    return Image.fromarray(ramp.reshape(size, size, 3))


def encoded(made: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """Encode a picture."""
    file = io.BytesIO()
    made.save(file, kind, **settings)
    return file.getvalue()


def pictures(folder: Path, size: int = 8, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Make class folders with 3 training and 2 test pictures of each class."""
    for split, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                picture(number * 40 + k, size).save(folder / split / name / f"{k}.png")


def columns(count: int) -> Content:
    """Give the two columns of a parquet split."""
    images = [{"bytes": encoded(picture(17 * k)), "path": f"{k}.png"} for k in range(count)]
    return {"img": images, "label": [k % 2 for k in range(count)]}


def table(of: Content, names: Any = ("cat", "dog")) -> Any:
    """Make an arrow table, with class names where `datasets` keeps them; None leaves them out."""
    if names is None:
        return pa.table(of)
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    return pa.table(of).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(folder: Path, train: Any = None, test: Any = None, **settings: Any) -> None:
    """Write both splits in the layout of the hub, 8 and 6 pictures where no table is given."""
    folder.mkdir(exist_ok=True)
    for split, made, count in (("train", train, 8), ("test", test, 6)):
        made = table(columns(count)) if made is None else made
        pq.write_table(made, folder / f"{split}-00000-of-00001.parquet", **settings)


def batch(count: int = 4, **changes: Any) -> Content:
    """Give the contents of a pickled file of CIFAR-10."""
    pixels = np.arange(count * 3072, dtype=np.uint32).astype(np.uint8).reshape(count, 3072)
    return {"data": pixels, "labels": [k % 2 for k in range(count)], **changes}


def cifar(folder: Path) -> None:
    """Write CIFAR-10's files with 10 training and 4 test pictures."""
    folder.mkdir()
    for k in range(1, 6):
        (folder / f"data_batch_{k}").write_bytes(pickle.dumps(batch(2)))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"name {k}" for k in range(10)]}))
    (folder / "test_batch").write_bytes(pickle.dumps(batch()))


def idx(folder: Path, *, packed: bool = False) -> None:
    """Write MNIST's files with 6 training and 4 test pictures of 8x8."""
    folder.mkdir(parents=True)
    for split, count in (("train", 6), ("t10k", 4)):
        pixels = bytes(k % 251 for k in range(count * 64))
        images = struct.pack(">IIII", 2051, count, 8, 8) + pixels
        labels = struct.pack(">II", 2049, count) + bytes(k % 2 for k in range(count))
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{split}-{kind}-ubyte{'.gz' * packed}"
            path.write_bytes(gzip.compress(content) if packed else content)


def _data_sets(world: Path) -> None:
    """Make good sets, sets that do not go together, and folders that hold several or half a set."""
    pictures(world / "pictures")
    pictures(world / "larger", size=9)
    pictures(world / "others", classes=("cat", "cow"))
    pictures(world / "one_class", classes=("cat",))
    pictures(world / "damaged")
    (world / "damaged/train/dog/1.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    parquet(world / "parquet")
    cifar(world / "cifar")
    idx(world / "idx")
    idx(world / "packed", packed=True)
    (world / "several").mkdir()
    parquet(world / "several/cifar10")
    idx(world / "several/raw")
    pictures(world / "several/cifar10-copy")
    pictures(world / "twofold/mnist", classes=("0", "1"))
    idx(world / "twofold/mnist/raw")
    (world / "incomplete").mkdir()
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        shutil.copy(world / "idx" / name, world / "incomplete")
    pictures(world / "wrong/cifar10")
    for name in ("mnist-a", "mnist-b"):
        pictures(world / "copies" / name, classes=("0", "1"))
