"""`torchrun` as a user starts it: counts to the unit, exact resume, and what is said when a rank ends."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from perturblab.records import store

pytestmark = pytest.mark.slow

MIXED = (
    "--net-type batchout_mnist --nfilters 4 --dropout 0 --nepochs 2 --learning-rate 0.05 --audit --defence batchout "
    "--batchout-k 20 --batchout-partners different-class --batchout-eta 0.5 --write-log csv"
)
# Batch norm, masks drawn anew at every forward pass, also in evaluation, and BatchOut's counters.
HARD = "--net-type perturb_resnet18 --nfilters 4 --redraw-masks always --defence batchout --val-size 100 --nepochs 4"
LOUD = 60.0  # seconds that a start may take on a busy machine


def line(ranks: int, words: str) -> list[str]:
    launcher = f"-m torch.distributed.run --nproc-per-node {ranks}" if ranks > 1 else ""
    return [sys.executable, *shlex.split(f"{launcher} -m perturblab {words}")]


def tell(ranks: int, words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line(ranks, words), capture_output=True, text=True, timeout=240, check=False)


def train(ranks: int, flags: str, folder: Path) -> str:
    done = tell(ranks, f"train --dataset-train digits --device cpu {flags} --out {folder}")
    assert done.returncode == 0, done.stderr
    assert (folder / "metrics.csv").is_file() == ("--write-log" in flags)
    return done.stdout


def said(text: str) -> list[str]:
    """The lines of ours among those of torchrun."""
    return [line for line in text.splitlines() if line.startswith(("perturblab: ", "stopped ", "warning: "))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


@contextmanager
def begun(ranks: int, folder: Path, heard: str) -> Iterator[subprocess.Popen[str]]:
    """A run of `HARD` that has said something."""
    words = f"train --dataset-train digits --device cpu {HARD} --out {folder}"
    with subprocess.Popen(line(ranks, words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        until = time.monotonic() + LOUD
        while heard not in (text := process.stderr.readline()):
            assert text, "it ended before"
            assert time.monotonic() < until
        try:
            yield process
        finally:
            process.kill()


def ended(process: "subprocess.Popen[str]") -> list[str]:
    """Wait for the end of a process, and return the lines that it printed."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, "what torchrun gives when its processes have not given 0"
    return said(errors)


def children(process: "subprocess.Popen[str]") -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        found |= {int(word[5:]): int(child) for word in environment if word.startswith("RANK=")}
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(2, HARD, folder)
    return folder


def test_a_run_without_batch_norm_is_that_of_one_process(tmp_path: Path) -> None:
    counts, results = {}, {}
    for ranks in (1, 2, 3):
        folder = tmp_path / str(ranks)
        results[ranks] = train(ranks, MIXED, folder).splitlines()[:-1]
        rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
        counts[ranks] = [(row["correct"], row["total"], row["smoothed"], row["train_accuracy"]) for row in rows]
        record = store.load_record(folder / "record.json")
        assert (record.environment.ranks, record.counts.last.total) == (ranks, 597)
    assert counts[1] == counts[2] == counts[3]
    assert results[1] == results[2] == results[3], "said once, and the same"
    for ranks in (2, 3):
        other = weights(tmp_path / str(ranks))
        for name, value in weights(tmp_path / "1").items():
            torch.testing.assert_close(other[name], value, rtol=0.0, atol=1e-4)


def test_evaluation_is_equal_to_the_unit(straight: Path) -> None:
    """The masks of this net are drawn anew at every forward pass: chunk by chunk, all ranks draw the same."""
    found = [json.loads(tell(ranks, f"evaluate {straight} --audit --json").stdout) for ranks in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    last = store.load_record(straight / "record.json").counts.last
    assert found[0]["exact"] == {"correct": last.correct, "total": 597}


@pytest.mark.parametrize("who", ["torchrun", "one rank"])
def test_stopped_and_resumed_equals_the_straight_run(who: str, straight: Path, tmp_path: Path) -> None:
    with begun(2, tmp_path / "run", "epoch 1/4") as process:
        os.kill(process.pid if who == "torchrun" else children(process)[1], signal.SIGINT)
        (told,) = ended(process)
    assert told.startswith("stopped in epoch ")
    assert told.endswith(f"; go on with: torchrun --nproc-per-node 2 -m perturblab train --resume {tmp_path / 'run'}")
    done = tell(2, f"train --resume {tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert said(done.stderr) == []
    _are_the_same(tmp_path / "run", straight)


def _are_the_same(one: Path, two: Path) -> None:
    assert (one / "weights.safetensors").read_bytes() == (two / "weights.safetensors").read_bytes()
    assert store.load_record(one / "record.json").counts == store.load_record(two / "record.json").counts


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_which_can_be_resumed(victim: int, straight: Path, tmp_path: Path) -> None:
    with begun(2, tmp_path / "run", "epoch 1/4") as process:
        ranks = children(process)
        os.kill(ranks[victim], signal.SIGKILL)
        (told,) = ended(process)
    assert told == (
        f"perturblab: stopped: rank {1 - victim}: another rank has ended, or cannot be reached; go on from the last "
        f"checkpoint with: torchrun --nproc-per-node 2 -m perturblab train --resume {tmp_path / 'run'}"
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert not (tmp_path / "run/record.json").exists()
    done = tell(2, f"train --resume {tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    _are_the_same(tmp_path / "run", straight)


def test_another_number_of_ranks_is_allowed_and_said(tmp_path: Path) -> None:
    train(2, HARD.replace("--nepochs 4", "--nepochs 1"), tmp_path / "run")
    done = tell(1, f"train --resume {tmp_path / 'run'} --nepochs 2")
    assert done.returncode == 0
    assert said(done.stderr) == [
        "warning: this run had 2 rank(s) and goes on with 1: with the same batches in the same order, but no longer "
        "bit for bit, since batch norm and dropout see other rows"
    ]
    assert store.load_record(tmp_path / "run/record.json").environment.ranks == 1


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("train --dataset-train digits --batch-sizee 3", "unknown option --batch-sizee; did you mean --batch-size?"),
        ("train --dataset-train digitss --out {folder}", "'digitss' is neither a folder nor a data set; did you mean"),
        (
            "train --dataset-train digits --out {used}",
            " exists and is never overwritten; choose another, or go on with",
        ),
        ("train --dataset-train digits --device cuda:0 --out {folder}", "--device got 'cuda:0' for process "),
        ("models", "perturblab models runs in a single process; start it without torchrun"),
    ],
)
def test_mistakes_are_told_once(words: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/something").touch()
    done = tell(2, words.format(folder=tmp_path / "new", used=tmp_path / "used"))
    (told,) = said(done.stderr)
    assert told.startswith("perturblab: error: ")
    assert wrong in told
    assert not (tmp_path / "new").exists()
