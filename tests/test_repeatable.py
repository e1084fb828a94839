"""Same seed, same bits: twice in a row and across processes; what an older version left still loads."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from perturblab import checkpoint, cli, execution, figures, records, runs
from perturblab.config import TrainConfig
from perturblab.errors import UserError
from perturblab.progress import Show

QUIET = Show(quiet=True)
FIXTURES = Path(__file__).parent / "fixtures"
LINE = (
    "train --dataset-train digits --net-type perturb_resnet18 --nfilters 2 --first_filter_size 3 --train-size 40 "
    "--batch-size 10 --nepochs 2 --defence batchout --batchout-at all --audit --quiet --nthreads 1"
)


def result(folder: Path) -> dict[str, Any]:
    """The bits of a run: weights, record and metrics without the seconds."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["images_per_second"]
    return {
        "weights": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest(),
        "record": records.load(folder / "record.json").model_dump(exclude={"seconds"}),
        "rows": rows,
    }


def test_twice_in_a_row_and_in_other_processes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert cli.main([*LINE.split(), "--out", str(tmp_path / name)]) == 0
    for name, salt in (("three", "1"), ("four", "2")):
        command = [sys.executable, "-m", "perturblab", *LINE.split(), "--out", str(tmp_path / name)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": salt})
    assert cli.main([*LINE.split(), "--manual-seed", "2", "--out", str(tmp_path / "other")]) == 0
    one, *same = (result(tmp_path / name) for name in ("one", "two", "three", "four"))
    assert all(found == one for found in same)
    other = result(tmp_path / "other")
    assert other["weights"] != one["weights"]
    assert [row["train_loss"] for row in other["rows"]] != [row["train_loss"] for row in one["rows"]]


def test_what_may_change_bits_is_in_the_record(tmp_path: Path) -> None:
    assert cli.main([*LINE.split(), "--out", str(tmp_path / "run")]) == 0
    environment = records.load(tmp_path / "run/record.json").environment
    assert (environment.threads, environment.precision, environment.compile, environment.device) == (
        *(1, "fp32", "off", "cpu"),
    )
    assert environment.packages["torch"]
    assert environment.processor.model


# --- older versions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, checkpoint.VERSION))
def test_a_run_begun_by_an_older_version_goes_on(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by that version after 5 of 12 steps; the processor may be another one, hence a tolerance."""
    monkeypatch.setattr(figures, "progress_svg", lambda rows, path, title: None)
    (tmp_path / "run").mkdir()
    content = (FIXTURES / f"checkpoint-v{version}.pt").read_bytes()
    (tmp_path / "run/checkpoint.pt").write_bytes(content)
    held = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert held["version"] == version
    run = runs.resume_run(tmp_path / "run", {"dataroot": str(tmp_path)}, QUIET)
    assert run.state.epoch * run.steps + run.state.step == 5
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in held["model"].items())
    assert execution.execute(run, QUIET) is not None
    settings = {name: value for name, value in held["config"].items() if name != "out"}
    straight = runs.open_run(TrainConfig(**settings), tmp_path / "straight", QUIET)
    assert execution.execute(straight, QUIET) is not None
    for name, value in straight.model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["version"] == checkpoint.VERSION
    assert records.load(tmp_path / "run/record.json").counts.last.epoch == 2


def test_every_version_of_a_record_is_kept_and_loads() -> None:
    for version in range(1, records.VERSION + 1):
        record = records.load(FIXTURES / f"record-v{version}.json")
        assert (record.version, record.counts.last.total, record.parts) == (version, 597, [])


def test_a_newer_one_is_refused_with_the_remedy(tmp_path: Path) -> None:
    content = json.loads((FIXTURES / "record-v1.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps({**content, "version": records.VERSION + 1}))
    with pytest.raises(UserError, match=r"version is 2, expected 1; read it with a matching perturblab"):
        records.load(tmp_path / "record.json")


def test_fixtures_are_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 200_000
