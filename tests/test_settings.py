"""Settings for speed: precision, compilation, determinism, the allocator; decided once, recorded, resumed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from perturblab.cli import main
from perturblab.errors import NonFiniteError
from perturblab.records import store
from perturblab.records.config import TrainConfig
from perturblab.records.record import Record
from perturblab.runs import build, evaluate, open
from perturblab.runs.checkpoint import load_checkpoint
from perturblab.system import memory
from perturblab.system.terminal import Show
from perturblab.training import loop
from told import in_order

TINY = "--dataset-train digits --net-type lenet --nfilters 2 --nmasks 2 --train-size 20 --batch-size 10 --nthreads 1"


def trained(tmp_path: Path, flags: str, name: str = "run") -> Record:
    folder = tmp_path / name
    assert main.main(shlex.split(f"train {TINY} {flags} --nepochs 2 --quiet --out {folder}")) == 0
    return store.load_record(folder / "record.json")


@pytest.mark.parametrize(
    ("given", "device", "steps", "decided"),
    [
        ("auto", "cpu", 10**6, "off"),
        ("auto", "cuda", 4999, "off"),
        ("auto", "cuda", 5000, "on"),
        ("on", "cpu", 1, "on"),
        ("off", "cuda", 10**6, "off"),
    ],
)
def test_compilation_is_decided_by_device_and_length(given: str, device: str, steps: int, decided: str) -> None:
    config = TrainConfig.model_validate({"compile": given})
    assert build.decide_compile(config, torch.device(device), steps) == decided


def test_settings_are_recorded_and_kept_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = trained(tmp_path, "--precision bf16 --deterministic")
    assert (record.environment.precision, record.environment.compile) == ("bf16", "off")
    assert (record.config["precision"], record.config["compile"]) == ("bf16", "off")
    assert record.config["deterministic"] is True
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["config"]["compile"] == "off"
    # Whatever would be decided now, the run keeps what was decided then.
    monkeypatch.setattr(build, "_EARNED_BACK", 0)
    run = open.resume_run(tmp_path / "run", {"nepochs": 3}, Show(quiet=True))
    assert run.config.compile == "off"


def test_bf16_trains_in_bf16_and_keeps_float32_weights() -> None:
    seen = []

    class Spy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    recipe = loop.Recipe(nepochs=1, batch_size=4, precision="bf16")
    model = Spy(3, 2)
    images, labels = torch.zeros(8, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    epochs = loop.train(model, images, labels, recipe, loop.start(model, recipe), loop.Hooks(lambda x, _: x.float()))
    assert [epoch.images for epoch in epochs] == [8]
    assert seen == [torch.bfloat16] * 2
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32


def test_evaluation_is_float32_whatever_the_training_was(tmp_path: Path) -> None:
    """The counts of a bf16 run are those that its weights give in float32."""
    record = trained(tmp_path, "--precision bf16")
    result = evaluate.evaluate_run(tmp_path / "run", Show(quiet=True))
    assert result["exact"]["correct"] == record.counts.last.correct


def test_deterministic_is_on_while_training_and_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = loop.train

    def spy(*args: object, **options: object) -> object:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train", spy)
    trained(tmp_path, "--deterministic", "on")
    trained(tmp_path, "", "off")
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_same_bits_on_one_thread_and_on_two(tmp_path: Path) -> None:
    """The layer's own sums do not depend on the number of threads; `--deterministic` repeats a run bit for bit."""
    for name in ("one", "two"):
        trained(tmp_path, "--deterministic", name)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_steps_not_looked_at_yet_are_counted_before_a_state_is_saved() -> None:
    model, recipe = nn.Linear(1, 2), loop.Recipe(nepochs=1)
    state = loop.start(model, recipe)
    for step, correct in enumerate((1, 3)):
        state.unread.append(loop.Outcome(step, 0.1, torch.tensor(0.5 + step), torch.tensor(correct), 4))
    assert state.state_dict()["reached"] == {"loss": 8.0, "correct": 4, "images": 8, "seconds": 0.0}
    assert state.unread == []


def test_a_loss_that_is_not_finite_is_told_with_its_own_step_and_rate_however_late() -> None:
    model, recipe = nn.Linear(1, 2), loop.Recipe(nepochs=1)
    state = loop.start(model, recipe)
    for step, loss in enumerate((0.5, float("nan"), 0.5)):
        state.unread.append(loop.Outcome(step, 0.1 * (step + 1), torch.tensor(loss), torch.tensor(1), 4))
    with pytest.raises(NonFiniteError, match=in_order("nan epoch 1 step 2 0.2 ; --learning-rate 0.02")):
        state.read()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.parametrize(("value", "faults_less"), [("1", True), ("0", False)])
def test_freed_memory_is_kept_unless_told_not_to(value: str, faults_less: bool) -> None:
    """Tensors of 64 MB, freed and allocated again: with the setting their pages are zeroed once, not every time."""
    code = (
        "import resource, torch\nfrom perturblab.system.memory import keep_freed_memory\nmade = keep_freed_memory()\n"
        "def faults():\n  for _ in range(5): torch.ones(2**24)\n"
        "  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "warm = faults(), faults(), faults()\nprint(made, faults() - warm[-1])"
    )
    environment = {**os.environ, "PERTURBLAB_MALLOC": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    made, faults = done.stdout.split()
    assert made == str(faults_less)
    assert (int(faults) < 3000) == faults_less


def test_allocator_of_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERTURBLAB_MALLOC", raising=False)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
def test_compiled_run_takes_its_steps_and_says_what_the_first_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, compiled = trained(tmp_path, "--compile off", "off"), tmp_path / "on"
    assert main.main(shlex.split(f"train {TINY} --compile on --nepochs 2 --out {compiled}")) == 0
    assert "the first step took" in capsys.readouterr().err
    record = store.load_record(compiled / "record.json")
    assert record.environment.compile == "on"
    assert abs(record.counts.last.correct - plain.counts.last.correct) < 0.1 * plain.counts.last.total
