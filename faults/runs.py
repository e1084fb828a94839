"""Tiny runs, their expected results, and checks of their folders."""

import importlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.child import Child, ending
from perturblab.errors import UserError
from perturblab.records import paths, store
from perturblab.records.metrics import Row
from perturblab.records.pictures import progress
from perturblab.runs import checkpoint

EVERY = 0.15  # seconds between two checkpoints of a disturbed run, instead of 60
TINY = "--dataset-train digits --train-size 120 --batch-size 10 --nthreads 1 --quiet"
# Nets, optimisers, defences and precisions: everything that a checkpoint holds.
KINDS = (
    "--net-type lenet --nfilters 2",
    "--net-type lenet --nfilters 2 --optim-method Adam --dropout 0.2 --act rrelu --audit --val-size 20",
    "--net-type lenet --nfilters 2 --optim-method RMSprop --defence batchout --batchout-at all",
    "--net-type lenet --nfilters 2 --optim-method AdamW --defence fgsm-half --optimizer-schedule onecycle",
    "--net-type perturb_resnet18 --nfilters 2 --first_filter_size 3 --nmasks 3 --no-unique-masks",
    "--net-type lenet --nfilters 2 --precision bf16 --defence pgd --defence-steps 2",
    "--net-type batchout_mnist --nfilters 2 --padding 2 --defence batchout --batchout-partners different-class",
    "--net-type noiseresnet18 --nfilters 2 --redraw-masks train --optim-method Adam",
    "--net-type cifarnet --nfilters 2 --train-masks --optimizer-schedule cosine",
    "--net-type resnet18 --nfilters 2 --audit --code or --learning-rate 0.01",
)
WARM = Row(
    epoch=0,
    lr=0.1,
    train_loss=1.0,
    train_accuracy=50.0,
    seconds=1.0,
    images_per_second=9.0,
    val_loss=None,
    val_accuracy=None,
)


class World:
    """A working folder and a source of random moments.

    Args:
        folder: made, and readable by every user.
        seed: of the random moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.folder, self.random, self._count = folder, random.Random(seed), 0
        # Imported here once: a child that is another user may not be able to read these modules.
        for name in ("encodings.cp437", "importlib.readers", "numpy.ctypeslib", "torch.profiler", "torch._dynamo"):
            importlib.import_module(name)
        progress.progress_svg([WARM], folder / "warm.svg", "nothing")

    def new(self, name: str) -> Path:
        """Give a new path in the folder."""
        self._count += 1
        return self.folder / f"{self._count:03d}-{name}"

    def start(self, argv: Sequence[str], **options: Any) -> Child:
        """Start a command in a child."""
        return Child(argv, self.new("log"), **options)


@dataclass
class Straight:
    """An undisturbed run.

    Args:
        flags: of `perturblab train`.
        folder: of the run.
        steps: of the whole run.
        seconds: of a step.
    """

    flags: list[str]
    folder: Path
    steps: int
    seconds: float


def undisturbed_run(world: World, kind: str, seconds: float) -> Straight:
    """Do an undisturbed run that takes about ``seconds``."""
    flags = [*TINY.split(), *kind.split()]
    probe = world.start(["train", *flags, "--nepochs", "3", "--out", str(world.new("probe"))])
    expect_exit(probe)
    board = probe.board
    once = (board.time(board.last) - board.time(1)) / (board.last - 1)
    epochs = max(4, round(seconds / once / (board.last / 3)))
    flags += ["--nepochs", str(epochs)]
    folder = world.new("straight")
    child = world.start(["train", *flags, "--out", str(folder)])
    expect_exit(child)
    return Straight(flags, folder, child.board.last, once)


def expect_exit(child: Child, code: int = 0) -> None:
    """Wait for the end of an undisturbed command.

    Raises:
        RuntimeError: another exit code: the harness itself is broken.
    """
    if child.wait() != code:
        raise RuntimeError(f"an undisturbed command ended with {child.code}: {' / '.join(child.output[-3:])}")


def next_command(run: Straight, folder: Path) -> list[str]:
    """Make the command that a user would give next: resume, or start again without a checkpoint."""
    begun = any((folder / name).is_file() for name in (paths.CHECKPOINT, paths.PREVIOUS))
    quiet = ["--quiet", "--nthreads", "1"]
    return ["train", *quiet, "--resume", str(folder)] if begun else ["train", *run.flags, "--out", str(folder)]


def finish_run(world: World, run: Straight, folder: Path, **options: Any) -> list[str]:
    """Finish a run, and list its differences from the undisturbed run."""
    with ending(world.start(next_command(run, folder), **options)) as child:
        if child.wait() != 0:
            return [f"does not go on: code {child.code}, {' / '.join(child.output[-2:])}"]
    return differences(folder, run.folder)


def differences(folder: Path, want: Path) -> list[str]:
    """List the differences from the undisturbed run; seconds may differ."""
    wrong = incomplete_files(folder)
    if wrong:
        return wrong
    have, wanted = ({path.name for path in of.iterdir()} - {paths.PREVIOUS} for of in (folder, want))
    if have != wanted:
        wrong.append(f"the folder holds {sorted(have ^ wanted)} more or less")
    if _bytes(folder, "weights.safetensors") != _bytes(want, "weights.safetensors"):
        wrong.append("other weights")
    for name, read in (("record", _record), ("metrics", _metrics), ("checkpoint", _state)):
        if read(folder) != read(want):
            wrong.append(f"another {name}")
    return wrong


def incomplete_files(folder: Path) -> list[str]:
    """List the incomplete files of a run: at no moment may there be one."""
    wrong = []
    readers: dict[str, Callable[[Path], Any]] = {
        "record.json": _record,
        "metrics.jsonl": _metrics,
        paths.CHECKPOINT: _state,
        "weights.safetensors": lambda folder: _bytes(folder, "weights.safetensors"),
    }
    for name, read in readers.items():
        if (folder / name).exists():
            try:
                read(folder)
            except (UserError, ValueError) as error:
                wrong.append(f"{name} is incomplete: {error}")
    if (folder / "record.json").exists() and not (folder / "weights.safetensors").exists():
        wrong.append("a record without weights")
    return wrong


def _bytes(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def _record(folder: Path) -> dict[str, Any]:
    return store.load_record(folder / "record.json").model_dump(exclude={"seconds", "parts"})


def _metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def _state(folder: Path) -> str:
    """Hash the state in the checkpoint without its seconds; the previous checkpoint must not be needed."""
    warnings: list[str] = []
    content = checkpoint.load_checkpoint(folder / paths.CHECKPOINT, warnings.append)
    if warnings:
        raise ValueError(warnings[0])
    state = {name: value for name, value in content["state"].items() if name != "reached"}
    config = {name: value for name, value in content["config"].items() if name not in ("out", "nepochs")}
    return checkpoint.digest([config, dict(sorted(content["model"].items())), state, content["correct"]])


def check_one_line(child: Child, code: int = 2) -> list[str]:
    """List what is wrong with the exit code and the message of a command that had to give up."""
    lines = [line for line in child.output if not line.startswith("stopped in epoch")]
    if child.code != code:
        return [f"code {child.code}, expected {code}: {' / '.join(lines[-3:])}"]
    errors = [line for line in lines if line.startswith("perturblab: error: ")]
    return [] if len(errors) == 1 and len(lines) == 1 else [f"printed {lines[-3:]}"]


def copy_run(world: World, folder: Path) -> Path:
    """Copy a run's folder."""
    place = world.new("copy")
    shutil.copytree(folder, place)
    return place
