"""Same seed, same bits: twice in a row and across processes; every version of a record loads."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perturblab.cli import main
from perturblab.errors import UserError
from perturblab.records import store
from perturblab.records.config import TrainConfig
from perturblab.records.record import VERSION
from perturblab.studies import done
from perturblab.system.terminal import Show
from told import in_order

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
        "record": store.load_record(folder / "record.json").model_dump(exclude={"seconds"}),
        "rows": rows,
    }


def test_twice_in_a_row_and_in_other_processes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main.main([*LINE.split(), "--out", str(tmp_path / name)]) == 0
    for name, salt in (("three", "1"), ("four", "2")):
        command = [sys.executable, "-m", "perturblab", *LINE.split(), "--out", str(tmp_path / name)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": salt})
    assert main.main([*LINE.split(), "--manual-seed", "2", "--out", str(tmp_path / "other")]) == 0
    one, *same = (result(tmp_path / name) for name in ("one", "two", "three", "four"))
    assert all(found == one for found in same)
    other = result(tmp_path / "other")
    assert other["weights"] != one["weights"]
    assert [row["train_loss"] for row in other["rows"]] != [row["train_loss"] for row in one["rows"]]


def test_what_may_change_bits_is_in_the_record(tmp_path: Path) -> None:
    assert main.main([*LINE.split(), "--out", str(tmp_path / "run")]) == 0
    environment = store.load_record(tmp_path / "run/record.json").environment
    assert (environment.threads, environment.precision, environment.compile, environment.device) == (
        *(1, "fp32", "off", "cpu"),
    )
    assert environment.packages["torch"]
    assert environment.processor.model


# --- older versions -------------------------------------------------------------------------------------------------


def test_every_version_of_a_record_is_kept_and_loads() -> None:
    for version in range(1, VERSION + 1):
        record = store.load_record(FIXTURES / f"record-v{version}.json")
        assert (record.version, record.counts.last.total, record.parts) == (version, 597, [])


def test_a_record_with_flags_that_set_nothing_loads_and_is_what_is_asked_for(tmp_path: Path) -> None:
    content = json.loads((FIXTURES / "record-v1.json").read_text())
    flags = {name: value for name, value in content["config"].items() if name in TrainConfig.model_fields}
    content["config"] |= {"save": "saved", "logs": "logged", "learning_rate_decay": "0.1"}
    (tmp_path / "record.json").write_text(json.dumps(content))
    record = store.load_record(tmp_path / "record.json")
    assert record.config.keys() >= {"save", "logs", "learning_rate_decay"}
    assert done.describe_differences(record, TrainConfig(**flags), flags.keys()) == ""
    assert (
        done.describe_differences(record, TrainConfig(**flags | {"momentum": 0.5}), flags.keys())
        == "momentum 0.9, now 0.5"
    )


def test_a_newer_one_is_refused_with_the_remedy(tmp_path: Path) -> None:
    content = json.loads((FIXTURES / "record-v1.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps({**content, "version": VERSION + 1}))
    with pytest.raises(UserError, match=in_order("version 2 expected 1 ; perturblab")):
        store.load_record(tmp_path / "record.json")


def test_fixtures_are_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 200_000
