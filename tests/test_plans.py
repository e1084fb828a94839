"""Plans of a study: which runs there are, which are done, and which were done otherwise than asked for."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders import FULL
from perturblab.cli import arguments, main
from perturblab.records import store
from perturblab.records.attack_names import ACTIVE, AT_INFERENCE
from perturblab.records.config import TrainConfig, validated
from perturblab.records.paths import RunFolder
from perturblab.records.record import Record, Study
from perturblab.studies import done, plan
from perturblab.studies.catalogue import SETUPS
from perturblab.studies.jobs import argv
from perturblab.studies.keep import lacking_setups, share_records
from studies import ATTACKED, FGSM, SETTINGS, TINY, keep_record, planned, points
from told import in_order

# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_goes_seed_by_seed_and_runs_what_is_the_same_once(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "K4", "H5", seeds=2)
    assert [job.name for job in jobs] == ["K4 seed 1", "H5 seed 1", "K4 seed 2", "H5 seed 2"]
    twin = replace(SETUPS["K4"], id="K4-twin")
    (job,) = plan.plan([SETUPS["K4"], twin], TINY, [1], results=tmp_path / "results", work=tmp_path / "runs")
    assert job.setups == ("K4", "K4-twin")
    assert [str(path.relative_to(tmp_path)) for path in job.results] == [
        *("results/tiny/K4/seed-1", "results/tiny/K4-twin/seed-1")
    ]


def test_what_one_of_several_same_set_ups_has_is_given_to_the_others(tmp_path: Path) -> None:
    twin = replace(SETUPS["K4"], id="K4-twin")
    places = {"results": tmp_path / "results", "work": tmp_path / "runs"}
    (alone,) = plan.plan([SETUPS["K4"]], TINY, [1], **places)
    record = Record.model_validate(FULL | {"study": {"setup": "K4", "preset": "tiny"}})
    alone.results[0].mkdir(parents=True)
    store.save_record(record, alone.results[0] / "record.json")
    (alone.results[0] / "metrics.jsonl").write_text('{"epoch": 0}\n')
    both = plan.plan([SETUPS["K4"], twin], TINY, [1, 2], **places)
    assert lacking_setups(both[0]) == {"K4-twin": both[0].results[1]}
    assert lacking_setups(both[1]) == {}
    left = share_records(both)
    assert lacking_setups(both[0]) == {}
    assert [job.name for job in left] == [both[1].name], "seed 2 is to be run"
    given = store.load_record(both[0].results[1] / "record.json")
    assert given == record.model_copy(update={"study": Study(setup="K4-twin", preset="tiny")})
    assert (both[0].results[1] / "metrics.jsonl").read_text() == '{"epoch": 0}\n'
    assert store.load_record(alone.results[0] / "record.json") == record


def test_the_command_line_of_a_job_says_its_flags(tmp_path: Path) -> None:
    (job,) = planned(tmp_path, "K7", dataroot="somewhere", classes=("1", "0"))
    line = argv(job, 1)[3:]
    config = validated(TrainConfig, arguments.select_fields(main.parse(main._parser(), line), TrainConfig))
    assert {name: getattr(config, name) for name in job.flags if name != "dataroot"} == {
        name: value for name, value in job.flags.items() if name != "dataroot"
    }
    assert "--no-unique-masks" in line


# --- what is done ----------------------------------------------------------------------------------------------------


ACTIVELY = {"draws": 1, "verdicts": 3, "mode": f"{ACTIVE}, a published mistake", "seed": 1}
IN_EVAL = {**FGSM, "draws": 1, "verdicts": 3, "batchout_in_eval": True}
PGD = {"draws": 1, "early_stop": True, "restarts": 5, "steps": 50, "seed": 1}


@pytest.mark.parametrize(
    ("asked", "found", "is_done"),
    [
        (FGSM, [("fgsm", SETTINGS, {})], True),
        (FGSM, [("fgsm", SETTINGS, {"total": 99})], False),
        ({**FGSM, "subset": 30_000}, [("fgsm", SETTINGS, {"total": 10_000})], True),  # more than there are
        ({**FGSM, "subset": None}, [("fgsm", SETTINGS, {})], False),  # a part of the images for all of them
        ({**FGSM, "subset": None}, [("fgsm", SETTINGS, {"total": 10_000})], True),
        (FGSM, [("fgsm", {**SETTINGS, "seed": 2}, {})], False),
        (FGSM, [("fgsm", ACTIVELY, {}), ("fgsm frozen", ACTIVELY, {})], False),
        (IN_EVAL, [("fgsm", SETTINGS, {})], False),  # plain FGSM is not FGSM with BatchOut in evaluation
        (IN_EVAL, [("fgsm", ACTIVELY, {})], False),  # its frozen twin is not there yet
        (IN_EVAL, [("fgsm", ACTIVELY, {}), ("fgsm frozen", {**ACTIVELY, "verdicts": ...}, {})], True),
        (
            IN_EVAL,
            [("fgsm", {**ACTIVELY, "verdicts": 4}, {}), ("fgsm frozen", {**ACTIVELY, "verdicts": ...}, {})],
            False,
        ),
        (IN_EVAL, [("fgsm", {**ACTIVELY, "draws": 20}, {}), ("fgsm frozen", {**ACTIVELY, "verdicts": ...}, {})], False),
        ({**IN_EVAL, "attacks": "square"}, [("square frozen", {**ACTIVELY, "verdicts": ...}, {})], True),
        ({**IN_EVAL, "attacks": "uniform"}, [("uniform", ACTIVELY, {})], True),
        (
            {**FGSM, "attacks": "uniform", "inference_batchout": 30, "verdicts": 3},
            [("uniform", {**ACTIVELY, "draws": ..., "mode": f"{AT_INFERENCE}, beside 31 training images"}, {})],
            False,
        ),
        (
            {**FGSM, "attacks": "uniform", "inference_batchout": 30, "verdicts": 3},
            [("uniform", {**ACTIVELY, "draws": ..., "mode": f"{AT_INFERENCE}, beside 30 training images"}, {})],
            True,
        ),
        ({**FGSM, "attacks": "pgd"}, [("pgd", PGD, {})], True),
        ({**FGSM, "attacks": "pgd", "steps": 40}, [("pgd", PGD, {})], False),
        ({**FGSM, "attacks": "pgd", "restarts": 1}, [("pgd", PGD, {})], False),
        ({**FGSM, "attacks": "pgd", "step_size": 0.01}, [("pgd", PGD, {})], False),
        ({**FGSM, "attacks": "pgd"}, [("pgd", {**PGD, "step_size": 0.01}, {})], False),
        ({**FGSM, "attacks": "square", "queries": 9}, [("square", {"queries": 5000, "seed": 1}, {})], False),
        (
            {**FGSM, "attacks": "transfer-fgsm", "source": "runs/seed-2"},
            [("transfer-fgsm", {**SETTINGS, "source": "seed-2", "source_weights": "b"}, {})],
            True,
        ),
        (
            {**FGSM, "attacks": "transfer-fgsm", "source": "runs/seed-3"},
            [("transfer-fgsm", {**SETTINGS, "source": "seed-2", "source_weights": "b"}, {})],
            False,
        ),
        ({**FGSM, "attacks": "fgsm,pgd"}, [("fgsm", SETTINGS, {}), ("pgd", PGD, {"weights": "b"})], False),
        ({**FGSM, "eps": "0,0.1,0.2"}, [("fgsm", SETTINGS, {})], False),
        ({**FGSM, "eps": None}, [], False),
        ({**FGSM, "checks": True}, [("fgsm", SETTINGS, {})], False),  # the masking checks are still to come
    ],
)
def test_an_attack_counts_as_done_when_it_was_made_as_asked_for(
    asked: dict[str, Any], found: list[tuple[str, dict[str, Any], dict[str, Any]]], is_done: bool, tmp_path: Path
) -> None:
    (train,) = planned(tmp_path, "K4")
    keep_record(train)
    for attack, settings, more in found:
        points(train.results[0], attack, {k: v for k, v in settings.items() if v is not ...}, **more)
    assert done.is_done(replace(train, attack=asked)) == is_done


def test_the_checks_of_an_attack_are_those_asked_for(tmp_path: Path) -> None:
    (train,) = planned(tmp_path, "K4")
    keep_record(train)
    points(train.results[0], "pgd", PGD)
    job = replace(train, attack={**FGSM, "attacks": "pgd", "checks": True, "check_subset": 50})
    effort = {"steps": 50, "step_size": None, "restarts": 5, "queries": 5000, "draws": 1, "early_stop": True}
    findings = {"images": 50, "classes": 10, "eps": 0.1, "zero": 0, "bad": 0, "softmax": False, "saturated": 0}
    findings |= {"random": False, "large": 0, "fgsm": 9, "pgd": 9, "doubled": 9, "margin": 0, "black_box": {}}
    key = ["s", 50, "a", "linf", 0.1, effort, "", "", 1]
    for place, other in (
        (0, "t"),
        (1, 20),
        (2, "b"),
        (3, "l2"),
        (5, {**effort, "steps": 9}),
        (7, "c"),
        (8, 2),
        (4, 0.2),
    ):
        changed = [other if n == place else value for n, value in enumerate(key)]
        content = [{"key": changed, "flags": [], "findings": findings}]
        (train.results[0] / "attacks" / "checks.json").write_text(json.dumps(content))
        assert done.is_done(job) == (place == 4), "the radius is chosen by what was measured"


def test_points_of_other_weights_do_not_count(tmp_path: Path) -> None:
    """Where the weights lie here, and are those of the record that is kept."""
    (train,) = planned(tmp_path, "K4")
    record, job = keep_record(train), replace(train, attack=FGSM)
    points(train.results[0], "fgsm", SETTINGS, weights="a")
    train.work.mkdir(parents=True)
    (train.work / "weights.safetensors").write_bytes(b"other ones")
    assert done.is_done(job), "nothing says whose weights these are"
    (train.work / "record.json").write_bytes(record.read_bytes().replace(b'"seconds": 12.5', b'"seconds": 13.5'))
    assert done.is_done(job), "they are of another run than the record"
    here = json.loads(record.read_text())
    here["study"] = None
    (train.work / "record.json").write_text(json.dumps(here))
    assert not done.is_done(job)
    points(train.results[0], "fgsm", SETTINGS, weights=RunFolder(train.work).weights_hash())
    assert done.is_done(job)


def test_a_record_of_other_settings_is_neither_done_nor_run(tmp_path: Path) -> None:
    setups, folders = [SETUPS["K4"]], {"results": tmp_path / "results", "work": tmp_path / "runs"}
    train, *attacks = plan.plan(setups, replace(ATTACKED, seeds=1), [1], **folders)
    keep_record(train)
    assert done.is_done(train)
    path = keep_record(train, learning_rate=0.25, nepochs=3)
    standing = plan.sort_jobs([train, *attacks])
    assert (standing.done, standing.missing) == ([], []), "what attacks such a run is no better"
    assert [job for job, _ in standing.other] == [train, *attacks]
    told = in_order(f"nepochs 3 2 learning_rate 0.25 {train.flags['learning_rate']} ; move {path.parent}")
    assert re.search(told, standing.other[0][1])
    path.unlink()
    assert plan.sort_jobs([train]).missing == [train]


@pytest.mark.parametrize(
    ("asked", "found", "is_same"),
    [
        ({"batchout_eta": "0.1"}, {"batchout_eta": "0.1;0.1;0.1"}, True),  # a record has one a place
        ({"batchout_eta": "0.1"}, {"batchout_eta": "0.1;0.2;0.1"}, False),
        ({"batchout_eta": "0.1;0.2"}, {"batchout_eta": "0.1;0.2"}, True),
        ({"batchout_at": "all"}, {"batchout_at": "a.0,b"}, True),  # a record has what was meant
        ({"batchout_at": "a.0"}, {"batchout_at": "a.0,b"}, False),
        ({"batchout_k": "0.50"}, {"batchout_k": 0.5}, True),
        ({"learning_rate": "1e-2"}, {"learning_rate": 0.01}, True),
        ({"classes": "1,0"}, {"classes": ["1", "0"]}, True),
        ({"classes": "1,0"}, {"classes": ["0", "1"]}, False),
        ({"level": 0}, {"level": 0.1}, False),
        ({"dataset_train": "digits"}, {"dataset_train": "digits, 2 classes"}, True),
        ({"act": "relu"}, {}, True),  # a setting that the record does not name
    ],
)
def test_settings_are_compared_by_what_they_mean(
    asked: dict[str, Any], found: dict[str, Any], is_same: bool, tmp_path: Path
) -> None:
    (job,) = planned(tmp_path, "K4")
    flags = {name: value for name, value in job.flags.items() if name not in asked}
    keep_record(replace(job, flags=flags), **found)
    assert done.is_done(replace(job, flags={**job.flags, **asked})) == is_same


def test_records_of_several_versions_are_told_apart(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "K4", "H5", seeds=3)
    for job in jobs:
        keep_record(job)
    assert plan.sort_jobs(jobs).notes == []
    for job, number in zip(jobs, (1, 1, 0, 0, 0, 0), strict=True):
        path = job.results[0] / "record.json"
        content = json.loads(path.read_text())
        content |= {"numerics": number, "environment": content["environment"] | {"code": job.name.encode().hex()}}
        content["data"]["hashes"]["train"] = "feedbeef" if job is jobs[5] else "0123456789"
        path.write_text(json.dumps(content))
    name = FULL["data"]["train"]
    of_numerics, of_data = plan.sort_jobs(jobs).notes
    assert re.search(in_order("2 numerics: 4 of 0, 2 of 1"), of_numerics)
    told = f"2 digits: 5 of {name} test cd train 012345, 1 of {name} test cd train feedbe"
    assert re.search(in_order(told), of_data)
    other = replace(jobs[5], flags={**jobs[5].flags, "classes": ("0", "1")})
    path = jobs[5].results[0] / "record.json"
    path.write_text(path.read_text().replace('"config": {', '"config": {"classes": ["0", "1"], ', 1))
    assert len(plan.sort_jobs([*jobs[:5], other]).notes) == 1, "other data were asked for"
