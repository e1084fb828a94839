"""Interrupted anywhere equals uninterrupted, bit for bit: every net, every optimiser, defence and precision."""

import re
import signal
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from cases import NCLASSES, NET_ROWS, Case
from perturblab import data
from perturblab.cli import main
from perturblab.errors import UserError
from perturblab.layers import fixed_buffers
from perturblab.records import numerics, paths, store
from perturblab.records.choices import Defence, OptimMethod, Precision
from perturblab.records.config import TrainConfig
from perturblab.records.paths import RunFolder
from perturblab.records.pictures import progress
from perturblab.records.record import Part, Record
from perturblab.runs import checkpoint, open, train
from perturblab.system import files
from perturblab.system.memory import out_of_memory
from perturblab.system.terminal import Show
from perturblab.training import loop
from told import in_order

QUIET = Show(quiet=True)
COUNT, BATCH, EPOCHS = 11, 4, 2  # three steps an epoch, the last one of three images


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time of a short run goes into its picture."""
    monkeypatch.setattr(progress, "progress_svg", lambda rows, path, title: None)


# --- every net ------------------------------------------------------------------------------------------------------


def sample(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, *case.shape), generator=generator, dtype=torch.uint8)
    return images, torch.randint(NCLASSES, (COUNT,), generator=generator)


def prepare(images: Tensor, generator: torch.Generator) -> Tensor:
    return images / 255 + 0.1 * torch.rand(images.shape, generator=generator)


def steps_of(case: Case, model: nn.Module, state: loop.State, recipe: loop.Recipe, stop: bool) -> list[loop.Epoch]:
    """Train to the end, or for one step."""
    images, labels = sample(case)
    return list(
        loop.train(model, images, labels, recipe, state, loop.Hooks(prepare, after_step=lambda state: not stop))
    )


def whole(model: nn.Module, state: loop.State) -> str:
    """Of all that training goes on from, but the seconds."""
    held = {name: value for name, value in state.state_dict().items() if name != "reached"}
    reached = [state.reached.loss, state.reached.correct, state.reached.images]
    return checkpoint.digest([dict(sorted(model.state_dict().items())), held, reached])


def saved(folder: Path, model: nn.Module, state: loop.State) -> None:
    content = {"config": {}, "hashes": {}, "rows": [], "correct": []}
    content |= {"model": model.state_dict(), "state": state.state_dict()}
    checkpoint.save_checkpoint(folder / "checkpoint.pt", content, checkpoint.save_fixed(folder, fixed_buffers(model)))


@pytest.mark.parametrize("case", NET_ROWS, ids=lambda case: case.name)
def test_every_net_stopped_after_every_step_and_gone_on_from_the_file(case: Case, tmp_path: Path) -> None:
    recipe = loop.Recipe(nepochs=EPOCHS, batch_size=BATCH, optimizer="SGD", learning_rate=1e-4, seed=3)
    model = case.new(seed=1)
    state = loop.start(model, recipe)
    before = {name: value.clone() for name, value in fixed_buffers(model).items()}
    steps_of(case, model, state, recipe, stop=False)
    want = whole(model, state)
    assert all(torch.equal(before[name], value) for name, value in fixed_buffers(model).items()), "written once"

    model = case.new(seed=1)
    state = loop.start(model, recipe)
    for done in range(EPOCHS * 3):
        steps_of(case, model, state, recipe, stop=True)
        assert state.epoch * 3 + state.step == done + 1
        saved(tmp_path, model, state)
        model = case.new(seed=100 + done)  # another net, other streams: all must come from the file
        state = loop.start(model, loop.Recipe(nepochs=EPOCHS, batch_size=BATCH, seed=99))
        content = checkpoint.load_checkpoint(tmp_path / "checkpoint.pt")
        model.load_state_dict(content["model"])
        state.load_state_dict(content["state"])
    steps_of(case, model, state, recipe, stop=False)
    assert whole(model, state) == want


# --- every optimiser, defence and precision -------------------------------------------------------------------------

AXES = (get_args(OptimMethod), get_args(Defence), get_args(Precision))
PAIRS = [
    (optimizer, defence, AXES[2][(i + j) % 2])
    for (i, optimizer), (j, defence) in product(enumerate(AXES[0]), enumerate(AXES[1]))
]


def test_the_cover_has_every_pair() -> None:
    for one, two in combinations(range(3), 2):
        assert {(row[one], row[two]) for row in PAIRS} == set(product(AXES[one], AXES[two]))


def config(**given: Any) -> TrainConfig:
    settings = {"dataset_train": "digits", "net_type": "lenet", "nfilters": 2, "train_size": 40, "batch_size": 16}
    return TrainConfig(**settings | {"nepochs": 2} | given)


def executed(folder: Path, stops: set[int], settings: TrainConfig) -> str:
    """A run that stops after each of these steps and goes on from its folder."""
    run, done = open.open_run(settings, folder, QUIET), 0

    def stop() -> bool:
        nonlocal done
        done += 1
        return done in stops

    while train.execute(run, QUIET, stop) is None:
        torch.manual_seed(done)  # whatever another process has in its global stream
        torch._dynamo.reset()
        run = open.resume_run(folder, {}, QUIET)
    assert done == 6
    assert run.state.epoch == 2
    record = store.load_record(folder / "record.json").model_dump(exclude={"seconds"})
    return whole(run.model, run.state) + checkpoint.digest([record, run.history.correct])


@pytest.mark.parametrize(("optimizer", "defence", "precision"), PAIRS)
def test_every_pair_of_optimiser_defence_and_precision(
    optimizer: str, defence: str, precision: str, tmp_path: Path
) -> None:
    given = {"optim_method": optimizer, "defence": defence, "precision": precision, "audit": True, "dropout": 0.2}
    if defence == "pgd":
        given |= {"defence_steps": 2}
    if defence == "batchout":
        given |= {"batchout_at": "all"}
    straight = executed(tmp_path / "straight", set(), config(**given))
    assert executed(tmp_path / "parts", {1, 3, 5}, config(**given)) == straight
    assert executed(tmp_path / "other", {2}, config(**given, manual_seed=2)) != straight


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize(
    "net",
    [
        {"net_type": "lenet", "nfilters": 2, "dropout": 0.2},
        {"net_type": "perturb_resnet18", "nfilters": 2, "first_filter_size": 3},
        {"net_type": "batchout_mnist", "nfilters": 2, "padding": 2},
    ],
    ids=lambda net: net["net_type"],
)
def test_compiled(net: dict[str, Any], tmp_path: Path) -> None:
    straight = executed(tmp_path / "straight", set(), config(**net, compile="on"))
    assert executed(tmp_path / "parts", {2, 4}, config(**net, compile="on")) == straight


# --- fixed masks, written once --------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that was stopped after its second step."""
    steps = iter(range(9))
    assert train.execute(open.open_run(config(), tmp_path / "run", QUIET), QUIET, lambda: next(steps) == 1) is None
    return tmp_path / "run"


def test_masks_are_written_once_and_not_into_the_checkpoint(stopped: Path) -> None:
    held = torch.load(stopped / "checkpoint.pt", weights_only=True)
    run = open.resume_run(stopped, {}, QUIET)
    assert set(held["fixed"]) == set(run.unchanging)
    assert held["fixed"]
    assert not set(held["fixed"]) & set(held["model"])
    assert set(held["fixed"]) | set(held["model"]) == set(run.model.state_dict())
    before = files.stamp(stopped / paths.MASKS)
    assert train.execute(run, QUIET) is not None
    assert files.stamp(stopped / paths.MASKS) == before


def test_trained_and_redrawn_masks_are_where_they_can_change(tmp_path: Path) -> None:
    trained = open.open_run(config(train_masks=True), tmp_path / "trained", QUIET)
    assert trained.unchanging == {}
    assert train.execute(trained, QUIET) is not None
    assert not (tmp_path / "trained" / paths.MASKS).exists()
    redrawn = open.open_run(config(redraw_masks="train"), tmp_path / "redrawn", QUIET)
    assert not any("draws" in name for name in redrawn.unchanging), "the counter of the draws changes"


def test_masks_left_by_another_start_are_replaced(stopped: Path, tmp_path: Path) -> None:
    other = open.open_run(config(manual_seed=2), tmp_path / "other", QUIET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / paths.MASKS).write_bytes((stopped / paths.MASKS).read_bytes())
    assert not RunFolder(tmp_path / "other").is_begun(), "killed before its first checkpoint: it may be started again"
    assert train.execute(other, QUIET, lambda: True) is None
    open.resume_run(tmp_path / "other", {}, QUIET)


@pytest.mark.parametrize("spoil", ["missing", "torn", "of another run"])
def test_without_its_masks_a_run_is_refused(spoil: str, stopped: Path, tmp_path: Path) -> None:
    path = stopped / paths.MASKS
    if spoil == "missing":
        path.unlink()
    elif spoil == "torn":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        train.execute(open.open_run(config(manual_seed=2), tmp_path / "other", QUIET), QUIET, lambda: True)
        path.write_bytes((tmp_path / "other" / paths.MASKS).read_bytes())
    with pytest.raises(UserError, match=rf"{paths.MASKS} .*(missing|cannot be read|does not hold).*; restore the file"):
        open.resume_run(stopped, {}, QUIET)


def test_a_folder_that_is_deleted_meanwhile_is_written_anew(tmp_path: Path) -> None:
    run = open.open_run(config(), tmp_path / "run", QUIET)
    want = executed(tmp_path / "straight", set(), config())

    def delete() -> bool:
        for path in (tmp_path / "run").glob("*"):
            path.unlink()
        return False

    train.save_run(run)
    run.written.stamp = files.stamp(run.folder / paths.CHECKPOINT)
    assert train.execute(run, QUIET, delete) is not None
    again = open.resume_run(tmp_path / "run", {}, QUIET)
    assert want.startswith(whole(again.model, again.state))


# --- no moment without a whole one ----------------------------------------------------------------------------------


def test_at_every_moment_there_is_a_checkpoint(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two renames: a process that is killed there finds one by its name."""
    real, seen = Path.replace, []

    def watched(path: Path, target: Path) -> Path:
        seen.append(checkpoint.load_checkpoint(stopped / paths.CHECKPOINT)["state"]["step"])
        assert (stopped / paths.CHECKPOINT).is_file()
        return real(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    run = open.resume_run(stopped, {}, QUIET)
    for _ in range(2):
        train.save_run(run)
    assert len(seen) >= 4
    monkeypatch.undo()
    assert not list(stopped.glob(".*"))


def test_metrics_and_picture_are_written_when_an_epoch_has_ended(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(progress, "progress_svg", lambda rows, path, title: drawn.append(len(rows)))
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)  # a checkpoint after every step
    assert train.execute(open.resume_run(stopped, {}, QUIET), QUIET) is not None
    assert drawn == [1, 2]
    assert len((stopped / "metrics.jsonl").read_text().splitlines()) == 2


def test_where_files_have_one_name_only_the_one_before_is_moved(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    run = open.resume_run(stopped, {}, QUIET)
    train.save_run(run)
    assert (stopped / paths.PREVIOUS).is_file()
    open.resume_run(stopped, {}, QUIET)


def test_what_a_kill_leaves_is_swept_and_hinders_no_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".checkpoint.pt.123.part").write_bytes(b"half of it")
    line = f"train --dataset-train digits --net-type lenet --nfilters 2 --train-size 20 --nepochs 1 --out {folder}"
    assert main.main([*line.split(), "--quiet"]) == 0
    assert not list(folder.glob(".*"))
    assert main.main([*line.split(), "--quiet"]) == 2, "a run that is begun is never overwritten"


def test_an_older_record_never_stands_beside_newer_weights(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train.execute(open.resume_run(stopped, {}, QUIET), QUIET) is not None

    def die(record: Record, path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_record", die)
    with pytest.raises(KeyboardInterrupt):
        train.execute(open.resume_run(stopped, {"nepochs": 3}, QUIET), QUIET)
    assert not (stopped / "record.json").exists()
    monkeypatch.undo()
    assert train.execute(open.resume_run(stopped, {}, QUIET), QUIET) is not None
    assert store.load_record(stopped / "record.json").counts.last.epoch == 2


def test_a_run_that_another_process_has_gone_on_with_is_refused(stopped: Path) -> None:
    one, two = (open.resume_run(stopped, {}, QUIET) for _ in range(2))
    assert train.execute(one, QUIET) is not None
    with pytest.raises(UserError, match=in_order("another process ; --resume")):
        train.execute(two, QUIET)
    fresh = open.open_run(config(), stopped, QUIET)
    with pytest.raises(UserError, match="another process"):
        train.execute(fresh, QUIET)


# --- what is told ---------------------------------------------------------------------------------------------------


def test_more_epochs_and_other_threads_are_recorded_and_told(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        assert main.main(["train", "--resume", str(stopped), "--nepochs", "3", "--nthreads", str(before + 1)]) == 0
    finally:
        torch.set_num_threads(before)
    parts = store.load_record(stopped / "record.json").parts
    assert [(p.epoch, p.step, p.nepochs, p.threads) for p in parts] == [(0, 0, 2, before), (0, 2, 3, before + 1)]
    assert f"threads {before} before, {before + 1} now" in capsys.readouterr().err


def test_other_numerics_are_recorded_and_told(
    stopped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = numerics.NUMERICS
    monkeypatch.setattr(numerics, "NUMERICS", before + 1)
    assert main.main(["train", "--resume", str(stopped)]) == 0
    record = store.load_record(stopped / "record.json")
    assert [(p.step, p.numerics) for p in record.parts] == [(0, before), (2, before + 1)]
    assert (record.numerics, record.numbers) == (before + 1, (before, before + 1))
    assert f"numerics {before} before, {before + 1} now" in capsys.readouterr().err


def test_a_checkpoint_without_a_number_has_numerics_0(stopped: Path) -> None:
    run = open.resume_run(stopped, {}, QUIET)
    run.history.parts[0] = Part(**run.history.parts[0].model_dump(exclude={"numerics"}))
    record = train.execute(run, QUIET)
    assert record is not None
    assert [p.numerics for p in record.parts] == [0, numerics.NUMERICS]


def test_the_source_hash_is_kept_and_says_nothing(
    stopped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = numerics.code_hash()
    monkeypatch.setattr(numerics, "code_hash", lambda: "0" * 12)
    assert main.main(["train", "--resume", str(stopped)]) == 0
    record = store.load_record(stopped / "record.json")
    assert [(p.step, p.code) for p in record.parts] == [(0, before), (2, "0" * 12)]
    assert record.numbers == (numerics.NUMERICS,)
    assert "bits may differ" not in capsys.readouterr().err


def test_a_void_run_does_not_go_on(
    stopped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = numerics.Fault((numerics.NUMERICS,), "masks added twice", {"net_type": ("lenet",)})
    monkeypatch.setattr(numerics, "FAULTS", (fault,))
    monkeypatch.setattr(numerics, "NUMERICS", numerics.NUMERICS + 1)
    assert main.main(["train", "--resume", str(stopped)]) == 2
    assert re.search(in_order(f"{stopped} void ({fault}) ; --out"), capsys.readouterr().err)
    assert not (stopped / "record.json").exists()


def test_the_code_of_a_run_is_that_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = numerics.code_hash()
    monkeypatch.setattr(numerics.resources, "files", lambda package: tmp_path)
    (tmp_path / "numerics.py").write_text("edited while it trains")
    assert numerics.code_hash.__wrapped__() != before
    assert numerics.code_hash() == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes. Error code 12"),
         "out of memory (tried to allocate 4 bytes)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.5 GiB."), "out of memory (tried to allocate 2.5 gib)"),
        (RuntimeError("could not create a primitive"), "out of memory (could not create a primitive)"),
        (ImportError("failed to map segment from shared object"),
         "out of memory (failed to map segment from shared object)"),
        (OSError(12, "Cannot allocate memory"), "out of memory ([Errno 12] Cannot allocate memory)"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (RuntimeError("data is not allocated yet. You need to call raw_mutable_data() to actually allocate memory."),
         None),
    ],
)  # fmt: skip
def test_which_errors_are_about_memory(error: Exception, said: str | None) -> None:
    assert out_of_memory(error) == said


def test_no_memory_is_told_with_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: Any, **more: Any) -> Iterator[None]:
        raise RuntimeError("can't allocate memory: you tried to allocate 400 bytes")

    monkeypatch.setattr(loop, "train", full)
    line = (
        f"train --dataset-train digits --net-type lenet --nfilters 2 --batch-size 77 --out {tmp_path / 'run'} --quiet"
    )
    assert main.main(line.split()) == 2
    assert re.search(in_order("memory 400 bytes --batch-size 77"), capsys.readouterr().err)
    monkeypatch.setattr(data, "load", full)
    assert main.main(line.split()) == 2
    assert re.search(in_order("memory 400 bytes ; free"), capsys.readouterr().err)


def test_sigterm_while_the_data_load_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "load", lambda *given, **more: signal.raise_signal(signal.SIGTERM))
    assert main.main(["train", "--dataset-train", "digits", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "perturblab: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
