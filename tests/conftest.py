"""Settings and fixtures of all tests: one thread, no network, a cache of its own, runs that no test changes."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyautoattack import AutoAttack

import good_files
import nets
from attack_runs import RUNS
from builders import ONE_EPOCH, Tell, Told, command
from perturblab.records.pictures import curves, examples
from perturblab.runs import train
from perturblab.studies import jobs
from run_folders import QUIET, Finished, opened
from studies import InProcess

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
# Two threads that wait for each other on a busy machine are many times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(common: Path) -> None:
    """One for all processes, so that every kernel is compiled once."""
    os.environ["PERTURBLAB_CACHE"] = str(common / "cache")


@pytest.fixture(scope="session")
def made_once(common: Path) -> MadeOnce:
    """Make a folder in the first process that asks for it; the others wait and find it made."""

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        done = common / f"{name}.made"
        with (common / f"{name}.lock").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            if not done.exists():
                (common / name).mkdir()
                make(common / name)
                done.touch()
        return common / name

    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder with real data and the source documents."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is missing: its real data and documents are not checked")
    return folder


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own for one test."""
    monkeypatch.setenv("PERTURBLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def net() -> nets.PixelModel:
    """The small net that every attack meets."""
    return nets.trained(classes=nets.CLASSES)


@pytest.fixture
def few() -> nets.Images:
    """Eight images of that net's classes, the last with a wrong label."""
    x, y = nets.right_ones(nets.trained(classes=nets.CLASSES), 8, nets.CLASSES)
    return x, torch.cat([y[:-1], (y[-1:] + 1) % nets.CLASSES])


@pytest.fixture
def many() -> nets.Images:
    """Two hundred digits of all classes."""
    x, y = nets.digits()
    return x[:200], y[:200]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tell:
    """Run a command line in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> Told:
        try:
            code = command(line)
        except SystemExit as end:  # how argparse ends --help and --version
            code = int(end.code or 0)
        return Told(code, *capsys.readouterr())

    return run


# --- finished runs


@pytest.fixture(scope="session")
def run(made_once: MadeOnce) -> Path:
    """A finished run by the command line, audited, with validation; nobody may change it."""

    def make(folder: Path) -> None:
        assert command(f"train {ONE_EPOCH} --nepochs 2 --audit --val-size 10 --quiet --out {folder / 'run'}") == 0

    return made_once("cli", make) / "run"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """With everything: validation, audit, and enough epochs for the published rule; 597 = 9 * 64 + 21 test images."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    learning = {"optim_method": "Adam", "dropout": 0.1, "nfilters": 8, "first_filter_size": 3}
    run = opened(folder, train_size=200, val_size=50, batch_size=64, nepochs=13, audit=True, **learning)
    record = train.execute(run, QUIET)
    assert record is not None
    return Finished(folder, run, record)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures that is recognised as some classes of CIFAR-10, and so is augmented."""
    root, generator = tmp_path_factory.mktemp("data") / "pets", np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 5)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root


# --- runs under attack


@pytest.fixture(scope="session")
def attack_runs(made_once: MadeOnce) -> Path:
    """Six small runs to attack."""

    def make(root: Path) -> None:
        for name, flags in RUNS.items():
            assert command(f"train {flags} --quiet --out {root / name}") == 0

    return made_once("attacked", make)


@pytest.fixture
def here(attack_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a copy of every run to attack."""
    shutil.copytree(attack_runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures of attacks, which take longer than all the rest of the command."""
    monkeypatch.setattr(curves, "curves_svg", lambda *args, **given: None)
    monkeypatch.setattr(examples, "examples_svg", lambda *args, **given: None)


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack with few steps and targets; other tests show that it is strong."""
    run = AutoAttack.run_standard_evaluation

    def short(engine: AutoAttack, *args: Any, **given: Any) -> Any:
        for attack in (engine.apgd, engine.apgd_targeted, engine.fab):
            attack.n_iter = 10
        engine.apgd_targeted.n_target_classes = engine.fab.n_target_classes = 2
        return run(engine, *args, **given)

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", short)


# --- studies


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a study that are not processes of their own: each would import PyTorch again."""
    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(Popen=InProcess))
    monkeypatch.setattr(jobs, "_LOOK_EVERY", 0.0)


# --- bad input


@pytest.fixture(scope="session")
def good(made_once: MadeOnce) -> Path:
    """A folder of good files of every kind; tests copy them and break the copies."""
    return made_once("good", good_files.make)
