"""The numerics number: bits of five nets under pinned weights, and records that a known fault makes void.

A test here that fails says that bits have moved. If that was meant, raise NUMERICS by hand in
src/perturblab/records/numerics.py, say in CHANGELOG.md what moved, and run
`PYTHONPATH=src python tests/test_numerics.py`: it writes the fixture again. Weights, masks and images come from
Python's generator, not from torch's. BatchOut's partners, dropout and the start of PGD are drawn by torch: where its
stream differs from the fixture's, the cases that draw are skipped, since they cannot be compared.
"""

import hashlib
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders import FULL, Tell
from perturblab import attacks
from perturblab.attacks import Effort
from perturblab.layers import Masks, Mixing, batch_step, batchout_at
from perturblab.layers.kernels import build as kernels
from perturblab.models import Task, build
from perturblab.records import environment, numerics, store
from perturblab.records.dataframe import frame
from perturblab.records.paths import CHECKPOINT
from perturblab.records.record import Record
from perturblab.records.results import load_results, load_void
from perturblab.studies import done, plan
from perturblab.studies.catalogue import SETUPS
from perturblab.studies.job import Job
from perturblab.studies.jobs import argv
from perturblab.studies.keep import set_aside_void
from perturblab.studies.presets import PRESETS
from perturblab.system.terminal import Show
from perturblab.training import loop
from told import in_order

FIXTURE = Path(__file__).parent / "fixtures" / "numerics.json"
QUIET = Show(quiet=True)
CLASSES, CHANNELS, SIZE, BATCH, STEPS = 4, 2, 16, 8, 3


@dataclass(frozen=True)
class Pinned:
    """A small net, and how it is trained for three steps."""

    net: str
    options: Mapping[str, Any]
    optimizer: str = "SGD"
    batchout: Mapping[str, Mixing] = field(default_factory=dict)


NETS = {
    "several masks": Pinned("perturb_resnet18", {"nfilters": 4, "nmasks": 3, "train_masks": True}),
    "one mask": Pinned("perturb_resnet18", {"nfilters": 4, "nmasks": 1, "level": 0.1}),
    "noise net of or": Pinned("noiseresnet18", {"nfilters": 4, "first_filter_size": 3, "code": "or", "level": 0.1}),
    "plain net": Pinned("resnet18", {"nfilters": 3}),
    "BatchOut": Pinned("batchout_mnist", {"nfilters": 4}, "Adam", {"conv2": Mixing(eta="U[0,0.3]")}),
}
CASES = [f"{name}, {precision}" for name in NETS for precision in ("fp32", "bf16")]
ATTACK = "pgd on several masks"
# Of the largest change of a tensor. Elsewhere sums run in another order; bfloat16 has 8 bits.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1}


# --- pinned weights -------------------------------------------------------------------------------------------------


def uniform(shape: Sequence[int], low: float, high: float, name: str) -> Tensor:
    """Draw float32 values from Python's generator, whose `random()` is the same in every version."""
    draw = random.Random(name).random
    values = [low + (high - low) * draw() for _ in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(tuple(shape)).float()


def pinned_net(case: Pinned) -> nn.Module:
    """Build a net whose weights and masks are those of this file."""
    net = build(case.net, task=Task(CLASSES, CHANNELS, (SIZE, SIZE)), **case.options)
    with torch.no_grad():
        for name, module in net.named_modules():
            values = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            for part, tensor in values.items():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    bound = math.prod(module.weight.shape[1:]) ** -0.5
                    tensor.copy_(uniform(tensor.shape, -bound, bound, f"{name}.{part}"))
                elif isinstance(module, Masks) and tensor.is_floating_point():
                    tensor.copy_(uniform(tensor.shape, -1, 1, f"{name}.{part}"))
    return net.to(memory_format=torch.channels_last)


def images() -> tuple[Tensor, Tensor]:
    """Make the images, uint8 (N, C, H, W), and their labels, int64 (N,)."""
    pixels = uniform((BATCH * STEPS, CHANNELS, SIZE, SIZE), 0, 256, "images").floor().to(torch.uint8)
    return pixels, torch.arange(len(pixels)) % CLASSES


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + value.numpy().tobytes())
    return found.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute alike in every number of test workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def labelled(x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Tell BatchOut the labels of a batch."""
    with batch_step(y):
        yield x


def trained(case: str) -> dict[str, Any]:
    """Train a net for three steps; give the digests of its state before and after, and how far each tensor moved."""
    name, precision = case.rsplit(", ", 1)
    pinned = NETS[name]
    with one_thread():
        net, (pixels, labels) = pinned_net(pinned), images()
        before = {name: value.detach().clone() for name, value in net.state_dict().items()}
        if pinned.batchout:
            batchout_at(net, dict(pinned.batchout), generator=torch.Generator().manual_seed(1))
        recipe = loop.Recipe(1, BATCH, pinned.optimizer, 1e-3, precision=precision)
        state = loop.start(net, recipe)
        state.permutation = torch.arange(len(labels))
        epochs = loop.train(
            net,
            pixels,
            labels,
            recipe,
            state,
            loop.Hooks(
                prepare=lambda x, generator: (x.float() / 255 - 0.5).contiguous(memory_format=torch.channels_last),
                during=labelled,
            ),
        )
        assert [epoch.images for epoch in epochs] == [BATCH * STEPS]
    after = {name: value for name, value in net.state_dict().items() if name in before}
    assert after.keys() == before.keys()
    real = {name: value for name, value in after.items() if value.is_floating_point()}
    moved = {name: (value.double() - before[name].double()).norm().item() for name, value in real.items()}
    return {"start": digest(before), "end": digest(after), "norms": moved}


def attacked() -> dict[str, Any]:
    """Attack an untrained net in eval mode; give the digests of the images, and the size of their logits."""
    with one_thread():
        net, (pixels, labels) = pinned_net(NETS["several masks"]).eval(), images()
        model = attacks.PixelModel(net, [0.5] * CHANNELS, [0.25] * CHANNELS)
        x = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
        threat, generator = attacks.Threat("l2", 0.5), torch.Generator().manual_seed(1)
        found = attacks.pgd(model, x, labels, threat, Effort(steps=4, restarts=1), generator=generator)
        with torch.no_grad():
            logits = model(found).double()
    sizes = {f"logits of image {row}": value.norm().item() for row, value in enumerate(logits)}
    return {"start": digest({"x": x}), "end": digest({"x": found}), "norms": sizes}


def drawn() -> str:
    """Give the digest of what torch draws from a seed, as BatchOut, dropout and PGD do."""
    generator = torch.Generator().manual_seed(1)
    kinds = {"randint": torch.randint(9, (99,), generator=generator), "rand": torch.rand(99, generator=generator)}
    kinds["bernoulli"] = torch.empty(99).bernoulli_(0.5, generator=generator)  # as dropout does
    return digest(kinds)  # without randn, whose last bits depend on the processor


def circumstances() -> dict[str, Any]:
    """Describe everything outside this package that bits depend on."""
    processor = environment.processor()
    compiler = kernels.compiler()
    said = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False) if compiler else None
    return {
        "processor": processor.model,
        "features": processor.features,
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "kernel": kernels.way(),
        "compiler": said.stdout.splitlines()[0] if said and said.stdout else "",
    }


MADE = json.loads(FIXTURE.read_text(encoding="utf-8")) if FIXTURE.is_file() else {"made on": {}, "cases": {}}
HERE = circumstances()
CHECKED = "bits" if MADE["made on"] == HERE else "tolerance"


def wrong(found: Mapping[str, Any], kept: Mapping[str, Any], tolerance: float | None) -> list[str]:
    """Name what differs from the fixture: in bits, or where a tolerance is given, in how far each tensor moved."""
    if found["start"] != kept["start"]:
        return ["start"]
    if tolerance is None:
        return [] if found["end"] == kept["end"] else ["bits"]
    if found["norms"].keys() != kept["norms"].keys():
        return ["names"]
    most = tolerance * max(kept["norms"].values())
    return [
        name
        for name, norm in kept["norms"].items()
        if not math.isclose(found["norms"][name], norm, rel_tol=tolerance, abs_tol=most)
    ]


@pytest.mark.parametrize("how", [CHECKED])
@pytest.mark.parametrize("case", [*CASES, ATTACK])
def test_no_bit_has_moved_under_this_number(
    case: str, how: str, record_property: Callable[[str, object], None]
) -> None:
    """The id of the test says what was compared: bits on the machine that the fixture names, else a tolerance."""
    record_property("compared", how)
    assert MADE["numerics"] == numerics.NUMERICS, "the fixture is of another number; write it again"
    if MADE["drawn"] != drawn() and (case == ATTACK or case.startswith("BatchOut")):
        pytest.skip("torch draws other numbers from the same seed than where the fixture was made")
    found = attacked() if case == ATTACK else trained(case)
    tolerance = None if how == "bits" else TOLERANCES[case.rsplit(", ", 1)[-1] if case in CASES else "fp32"]
    assert wrong(found, MADE["cases"][case], tolerance) == [], f"{how} moved; see the head of this file"


@pytest.mark.parametrize("tolerance", [None, *TOLERANCES.values()])
def test_what_moves_is_found(tolerance: float | None) -> None:
    kept = {"start": "a", "end": "b", "norms": {"x": 1.0, "y": 0.0}}
    assert wrong(kept, kept, tolerance) == []
    assert wrong(kept | {"start": "c"}, kept, tolerance) == ["start"]
    far = kept | {"end": "c", "norms": {"x": 1.0, "y": 0.2}}
    assert wrong(far, kept, tolerance) == (["bits"] if tolerance is None else ["y"])
    near = kept | {"end": "c", "norms": {"x": 1.0 + 1e-5, "y": 0.0}}
    assert wrong(near, kept, tolerance) == (["bits"] if tolerance is None else [])


# --- records that a fault makes void --------------------------------------------------------------------------------

FAULT = numerics.Fault((1,), "masks added twice", {"net_type": ("perturb_resnet18",), "nmasks": (None, 1)})


@pytest.mark.parametrize(
    ("config", "numbers", "is_void"),
    [
        ({"net_type": "perturb_resnet18", "nmasks": 1}, (1,), True),
        ({"net_type": "perturb_resnet18"}, (1,), True),
        ({"net_type": "perturb_resnet18", "nmasks": 1}, (0,), False),
        ({"net_type": "perturb_resnet18", "nmasks": 1}, (2,), False),
        ({"net_type": "perturb_resnet18", "nmasks": 1}, (1, 2), True),
        ({"net_type": "perturb_resnet18", "nmasks": 2}, (1,), False),
        ({"net_type": "resnet18", "nmasks": 1}, (1,), False),
        ({}, (1,), False),
    ],
)
def test_which_records_a_fault_names(
    config: dict[str, Any], numbers: tuple[int, ...], is_void: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert numerics.find_fault(config, numbers) is None, "the number alone voids nothing"
    monkeypatch.setattr(numerics, "FAULTS", (numerics.Fault((7,), "another"), FAULT))
    assert numerics.find_fault(config, numbers) == (FAULT if is_void else None)


def test_a_fault_without_settings_names_every_record_of_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record.model_validate(FULL)
    assert record.fault is None
    monkeypatch.setattr(numerics, "FAULTS", (fault := numerics.Fault((0, 1), "all wrong"),))
    assert record.fault == fault
    assert str(fault) == "numerics 0 and 1: all wrong"


def test_no_known_fault_names_the_number_of_today() -> None:
    """A fault that is not mended yet would make void what is run now."""
    assert max((number for fault in numerics.FAULTS for number in fault.numerics), default=0) < numerics.NUMERICS


def test_a_part_of_a_run_makes_all_of_it_void(monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"epoch": 0, "step": 0, "nepochs": 1, "threads": 1, "device": "cpu", "kernel": "native", "torch": "2"}
    parts = [part | {"processor": "A", "numerics": number} for number in (1, 2)]
    record = Record.model_validate(FULL | {"numerics": 2, "parts": parts})
    assert record.numbers == (1, 2)
    monkeypatch.setattr(numerics, "FAULTS", (fault := numerics.Fault((1,), "wrong"),))
    assert record.fault == fault


def study_of_two(folder: Path) -> list[Job]:
    """Plan a study of two runs and an attack on the first, and write records and checkpoints as if it had been run."""
    attack = {"attacks": "fgsm", "eps": "0,0.1", "subset": 20}
    tiny = replace(PRESETS["quick"], setups=("K4", "H5"), seeds=1, attacks={"K4": (attack,)})
    jobs = plan.plan([SETUPS["K4"], SETUPS["H5"]], tiny, None, results=folder / "results", work=folder / "runs")
    for job in jobs[:2]:
        config = {**job.flags, "dataset_train": "digits as shown"}
        named = {"study": {"setup": job.setups[0], "preset": "quick"}, "seed": job.flags["manual_seed"]}
        record = Record.model_validate(FULL | named | {"config": config})
        for place in (job.work, *job.results):
            store.save_record(record, place / "record.json")
        (job.work / CHECKPOINT).touch()
    return jobs


def test_a_void_run_is_told_and_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, results = study_of_two(tmp_path), tmp_path / "results"
    monkeypatch.setattr(done, "is_measured", lambda *given, **more: True)
    assert plan.sort_jobs(jobs).done == jobs
    assert len(frame(results)) == 2
    monkeypatch.setattr(numerics, "FAULTS", (fault := numerics.Fault((1,), "added twice", {"filter_size": (1,)}),))
    standing = plan.sort_jobs(jobs)
    assert (standing.missing, standing.done, standing.other) == ([jobs[0], jobs[2]], [jobs[1]], [])
    (note,) = standing.notes
    assert re.search(in_order(f"void 1 ({fault})"), note)
    assert [run.record.study.setup for run in load_results(results) if run.record.study] == ["H5"]
    (void,) = load_void(results)
    assert re.search(in_order(f"K4 quick seed 1 void ({fault}) ;"), void)
    assert len(frame(results)) == 1
    assert "--resume" in argv(jobs[0], 1)
    set_aside_void(standing.missing, QUIET)
    assert "--resume" not in argv(jobs[0], 1), "what is void does not go on"
    assert (tmp_path / "runs/quick/K4/seed-1-void-1" / CHECKPOINT).is_file()
    assert (results / "quick/K4/seed-1-void-1/record.json").is_file()
    assert (jobs[1].work / CHECKPOINT).is_file()
    assert plan.sort_jobs(jobs).missing == [jobs[0]], "what is set aside is found by no job"


def test_weights_of_a_void_run_are_trained_anew_for_an_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record that is kept is valid; the run that lies in the folder of the weights is not."""
    jobs = study_of_two(tmp_path)
    valid = store.load_record(jobs[0].results[0] / "record.json").model_copy(update={"numerics": 2})
    store.save_record(valid, jobs[0].results[0] / "record.json")
    assert plan.sort_jobs(jobs).missing == [jobs[2]]
    monkeypatch.setattr(numerics, "FAULTS", (numerics.Fault((1,), "added twice", {"filter_size": (1,)}),))
    standing = plan.sort_jobs(jobs)
    assert (standing.missing, standing.done) == ([jobs[0], jobs[2]], [jobs[1]])
    set_aside_void(standing.missing, QUIET)
    assert not jobs[0].work.exists()
    assert (jobs[0].results[0] / "record.json").is_file()


def test_a_void_run_is_evaluated_with_a_warning(tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    line = f"train --dataset-train digits --net-type lenet --nfilters 2 --nepochs 1 --train-size 20 --out {folder}"
    assert tell(f"{line} --quiet")[0] == 0
    assert store.load_record(folder / "record.json").numerics == numerics.NUMERICS
    assert tell(f"evaluate {folder}")[2].count("void") == 0
    monkeypatch.setattr(numerics, "FAULTS", (fault := numerics.Fault((numerics.NUMERICS,), "added twice"),))
    code, _, err = tell(f"evaluate {folder}")
    assert code == 0
    assert f"warning: {folder} is void ({fault})" in err


def test_the_page_names_void_records_and_leaves_them_out(
    tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"study": {"setup": "K4", "preset": "cpu"}, "config": {"net_type": "resnet18"}}
    for seed in (1, 2):
        record = Record.model_validate(FULL | named | {"seed": seed, "numerics": seed})
        store.save_record(record, tmp_path / f"results/seed-{seed}/record.json")
    line = f"report {tmp_path}/results -o {tmp_path}/page.html"
    code, out, err = tell(line)
    assert (code, err) == (0, "")
    assert "2 records; " in out
    assert "Void records" not in (tmp_path / "page.html").read_text()
    monkeypatch.setattr(numerics, "FAULTS", (numerics.Fault((1,), "masks <added> twice"),))
    code, out, err = tell(line)
    assert (code, err.count("\n")) == (0, 1)
    assert re.search(in_order("K4 cpu seed 1 void (numerics 1: masks <added> twice) ; run"), err)
    assert "1 records; " in out
    page = (tmp_path / "page.html").read_text()
    assert escape(err.strip(), quote=False) in page.split("Void records")[1]


def write_fixture() -> None:
    """Write the fixture on this machine."""
    cases = {case: attacked() if case == ATTACK else trained(case) for case in [*CASES, ATTACK]}
    content = {"numerics": numerics.NUMERICS, "made on": circumstances(), "drawn": drawn(), "cases": cases}
    FIXTURE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{FIXTURE.name} is written for numerics {numerics.NUMERICS}\n")


if __name__ == "__main__":
    write_fixture()
