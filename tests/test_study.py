"""Studies: what is missing is run, once; a stop, a crash and a second study lose nothing."""

import copy
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders import FULL, point, tell
from builders import run as finished
from perturblab import cli, matching, planning, presets, records, study, targets
from perturblab.attacks import ATTACKS
from perturblab.catalogue import ENTRIES, RELATIONS, SETUPS, Setup
from perturblab.config import AttackConfig, TrainConfig, validated
from perturblab.errors import UserError
from perturblab.files import locked
from perturblab.points import (
    ACTIVE,
    AT_INFERENCE,
    BLIND,
    WORST,
    Point,
    file_of,
    load_checks,
    load_points,
    save_points,
)
from perturblab.presets import PRESETS, Preset, chosen, flags_of, is_comparable
from perturblab.progress import Show
from perturblab.report import measured
from perturblab.report.values import value

QUIET = Show(quiet=True)
TINY = Preset(
    "tiny",
    "two epochs on forty digits",
    changes=("almost nothing is left of the protocol",),
    width=1 / 32,
    flags={"dataset_train": "digits", "train_size": 40, "batch_size": 20, "nepochs": 2},
)


def planned(folder: Path, *names: str, seeds: int = 1, preset: Preset = TINY, **given: Any) -> list[planning.Job]:
    setups = [SETUPS[name] for name in names]
    return planning.plan(
        setups, preset, range(1, seeds + 1), results=folder / "results", work=folder / "runs", given=given
    )


def run(jobs: list[planning.Job], **given: Any) -> list[study.Failure]:
    return study.run_jobs(jobs, processes=2, threads=1, show=QUIET, **given)


# --- presets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_every_run_of_every_preset_can_be_configured(preset: Preset) -> None:
    found = chosen((), preset)
    assert found
    for setup in found:
        flags = flags_of(setup, preset, 3)
        config = validated(TrainConfig, flags)
        assert config.manual_seed == 3
        assert config.nepochs == flags["nepochs"]


def test_every_attack_behind_a_figure_or_claim_is_made_at_the_full_preset() -> None:
    full, seen = PRESETS["full"], 0
    of = [(entry.setup, entry.measure, entry.id) for entry in ENTRIES.values()]
    of += [(side, r.measure, r.id) for r in RELATIONS.values() for side in (r.left, r.right)]
    for setup, measure, name in of:
        if (measure.metric != "attack" and not measure.mode) or not setup or measure.mode == "inference-vote":
            continue
        made = list[Point]()
        for given in full.attacks_on(setup):
            config = validated(AttackConfig, dict(given))
            modes = {"batchout_in_eval": ACTIVE, "inference_batchout": f"{AT_INFERENCE}, beside 30 training images"}
            settings = {"steps": config.steps, "step_size": config.step_size}
            settings |= next(({"mode": said} for flag, said in modes.items() if getattr(config, flag)), {})
            assert config.eps is not None
            made += [
                point(attack, eps, [1] * (config.subset or 4), norm=norm, settings=settings)
                for attack in config.attacks
                for caps in (attack.startswith("deepfool"),)
                for eps in (config.iterations if caps else config.eps)
                for norm in ("l2" if caps else config.norm,)
            ]
        assert value(finished(setup, 1, points=made), measure) is not None, name
        seen += 1
    assert seen > 300


def test_an_attack_as_published_is_made_at_its_own_radii_only() -> None:
    made = [given for given in PRESETS["full"].attacks_on("BO-mnist-batchout") if "autoattack" in given["attacks"]]
    assert made == [{"attacks": "autoattack", "eps": "0,0.1"}]
    assert PRESETS["full"].attacks_on("K4") == ()
    assert {"attacks": "fgsm,fgsm-normalised", "eps": "0,5/255"} in PRESETS["full"].attacks_on("SEED-cifar10-none")


def test_only_the_published_protocol_is_comparable() -> None:
    for name in ("quick", "cpu", "cpu-all", "gpu"):
        assert not any(is_comparable(setup, PRESETS[name]) for setup in chosen((), PRESETS[name]))
    comparable = {s.id for s in chosen((), PRESETS["robust"]) if is_comparable(s, PRESETS["robust"])}
    assert comparable == {"BO-mnist-none", "BO-mnist-batchout", "BO-mnist-fgsm-half"}
    for setup in chosen((), PRESETS["full"]):
        flags = flags_of(setup, PRESETS["full"], 1)
        assert {name: flags[name] for name in setup.flags} == dict(setup.flags)


@pytest.mark.parametrize(
    ("setup", "preset", "want"),
    [
        ("K1", "quick", {"nfilters": 10, "learning_rate": 1e-2, "nepochs": 12}),
        ("H5", "quick", {"nfilters": 28, "learning_rate": 1e-2, "dataset_train": "digits"}),
        ("K1", "cpu", {"nfilters": 6, "learning_rate": 1e-2, "batch_size": 64}),
        ("K3", "cpu", {"nfilters": 16, "learning_rate": 1e-3}),
        ("A1", "cpu", {"nfilters": 16, "learning_rate": 1e-3, "optim_method": "Adam", "level": 0.1, "code": "up"}),
        ("A1", "gpu", {"nfilters": 128, "nepochs": 30, "batch_size": 512, "precision": "bf16"}),
        ("A1", "full", {"nfilters": 128, "nepochs": 450, "batch_size": 10, "learning_rate": 1e-4}),
        ("K4", "full", {"nfilters": 128, "nepochs": 150, "batch_size": 16, "learning_rate": 1e-3}),
        ("L3", "cpu-all", {"nfilters": 8, "nweights": 16, "nepochs": 5, "batch_size": 256, "learning_rate": 1e-2}),
        ("L3", "gpu", {"nfilters": 8, "nepochs": 30, "batch_size": 256, "learning_rate": 1e-2}),
        ("U3", "cpu-all", {"nepochs": 5, "batch_size": 64, "learning_rate": 1e-3}),
        ("L1-cifar", "cpu-all", {"nfilters": 16, "depth": 4, "batch_size": 64, "learning_rate": 1e-3}),
    ],
)
def test_sizes_are_those_of_the_preset(setup: str, preset: str, want: dict[str, Any]) -> None:
    flags = flags_of(SETUPS[setup], PRESETS[preset], 1)
    assert {name: flags[name] for name in want} == want


def test_budgets_are_equal_for_all_set_ups_of_a_preset() -> None:
    for name in ("quick", "cpu", "cpu-all", "gpu"):
        flags = [flags_of(setup, PRESETS[name], 1) for setup in chosen((), PRESETS[name])]
        assert len({(f["nepochs"], f["batch_size"] if name != "cpu-all" else 0) for f in flags}) == 1


def test_ids_may_be_set_ups_figures_or_relations() -> None:
    assert [setup.id for setup in chosen(["H5", "K4", "H5"], TINY)] == ["H5", "K4"]
    assert [setup.id for setup in chosen(["R-noise"], TINY)] == [RELATIONS["R-noise"].left, RELATIONS["R-noise"].right]
    with pytest.raises(UserError, match=r"nothing in the catalogue is called 'K44'; did you mean K4\?"):
        chosen(["K44"], TINY)
    with pytest.raises(UserError, match="cannot be run: "):
        chosen(["H1"], TINY)
    with pytest.raises(UserError, match="rests on no run"):
        chosen(["R-no-exchange"], TINY)


# --- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_goes_seed_by_seed_and_runs_what_is_the_same_once(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "K4", "H5", seeds=2)
    assert [job.name for job in jobs] == ["K4 seed 1", "H5 seed 1", "K4 seed 2", "H5 seed 2"]
    twin = replace(SETUPS["K4"], id="K4-twin")
    (job,) = planning.plan([SETUPS["K4"], twin], TINY, [1], results=tmp_path / "results", work=tmp_path / "runs")
    assert job.setups == ("K4", "K4-twin")
    assert [str(path.relative_to(tmp_path)) for path in job.results] == [
        *("results/tiny/K4/seed-1", "results/tiny/K4-twin/seed-1")
    ]


def test_presets_of_one_size_share_their_records(tmp_path: Path) -> None:
    small, large = PRESETS["cpu"], PRESETS["cpu-all"]
    assert (small.folder, large.folder) == ("cpu", "cpu")
    for setup in chosen((), large):
        assert flags_of(setup, large, 1) == flags_of(setup, small, 1)
    at = {name: tmp_path / name for name in ("results", "work")}
    jobs = {
        job.name: job
        for job in planning.plan(chosen((), large), large, None, results=at["results"], work=at["work"])
        if "K4" in job.setups
    }
    for job in planning.plan([SETUPS["K4"]], small, (1, 2, 3), results=at["results"], work=at["work"]):
        assert job.results[0] in jobs[job.name].results
        assert job.flags == jobs[job.name].flags
    for preset in PRESETS.values():
        assert preset.folder in PRESETS


def test_what_one_of_several_same_set_ups_has_is_given_to_the_others(tmp_path: Path) -> None:
    twin = replace(SETUPS["K4"], id="K4-twin")
    places = {"results": tmp_path / "results", "work": tmp_path / "runs"}
    (alone,) = planning.plan([SETUPS["K4"]], TINY, [1], **places)
    record = records.Record.model_validate(FULL | {"study": {"setup": "K4", "preset": "tiny"}})
    alone.results[0].mkdir(parents=True)
    records.save(record, alone.results[0] / "record.json")
    (alone.results[0] / "metrics.jsonl").write_text('{"epoch": 0}\n')
    both = planning.plan([SETUPS["K4"], twin], TINY, [1, 2], **places)
    assert study.to_share(both[0]) == {"K4-twin": both[0].results[1]}
    assert study.to_share(both[1]) == {}
    left = study.share(both)
    assert study.to_share(both[0]) == {}
    assert [job.name for job in left] == [both[1].name], "seed 2 is to be run"
    given = records.load(both[0].results[1] / "record.json")
    assert given == record.model_copy(update={"study": records.Study(setup="K4-twin", preset="tiny")})
    assert (both[0].results[1] / "metrics.jsonl").read_text() == '{"epoch": 0}\n'
    assert records.load(alone.results[0] / "record.json") == record


def test_the_command_line_of_a_job_says_its_flags(tmp_path: Path) -> None:
    (job,) = planned(tmp_path, "K7", dataroot="somewhere", classes=("1", "0"))
    line = study.argv(job, 1)[3:]
    config = validated(TrainConfig, cli.given(cli.parsed(cli._parser(), line), TrainConfig))
    assert {name: getattr(config, name) for name in job.flags if name != "dataroot"} == {
        name: value for name, value in job.flags.items() if name != "dataroot"
    }
    assert "--no-unique-masks" in line


# --- runs -----------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_run_and_nothing_twice(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "K4", "H5")
    assert not any(planning.is_done(job) for job in jobs)
    assert run(jobs) == []
    assert all(planning.is_done(job) for job in jobs)
    for name in ("K4", "H5"):
        record = records.load(tmp_path / f"results/tiny/{name}/seed-1/record.json")
        assert record.study == records.Study(setup=name, preset="tiny")
        assert record.environment.code == records.code_hash()
        assert len((tmp_path / f"results/tiny/{name}/seed-1/metrics.jsonl").read_text().splitlines()) == 2
        assert not (tmp_path / f"results/tiny/{name}/seed-1/weights.safetensors").exists()


ATTACKED = replace(
    TINY,
    seeds=2,
    attacks={
        "K4": (
            {"attacks": "fgsm,deepfool", "eps": "0,0.1", "iterations": "1,2", "subset": 20, "checks": False},
            {"attacks": "transfer-fgsm", "eps": "0,0.1", "subset": 20, "checks": False, "source": "K4"},
        )
    },
)


def test_what_is_trained_is_attacked_as_the_preset_says(tmp_path: Path) -> None:
    setups, folders = [SETUPS["K4"]], {"results": tmp_path / "results", "work": tmp_path / "runs"}
    jobs = planning.plan(setups, ATTACKED, None, **folders)
    assert [job.name for job in jobs] == [
        *("K4 seed 1", "K4 seed 2"),
        *(f"K4 seed {seed}: {names}" for names in ("fgsm,deepfool", "transfer-fgsm") for seed in (1, 2)),
    ]
    assert [Path(job.attack["source"]).name for job in jobs if "source" in job.attack] == ["seed-2", "seed-1"]
    trained, attacks = jobs[:2], jobs[2:]
    failures = run(attacks)
    assert {failure.reason for failure in failures} == {"it needs a run that is not trained; say the same once it is"}
    assert not list((tmp_path / "results").rglob("*.json")), "nothing is written for what could not begin"
    assert run(trained) == []
    assert not any(planning.is_done(job) for job in attacks)
    assert run(jobs[2:]) == []
    assert all(planning.is_done(job) for job in jobs)
    kept = tmp_path / "results" / "tiny" / "K4" / "seed-1" / "attacks"
    assert {path.name for path in kept.glob("*.json")} >= {"fgsm.json", "deepfool.json", "transfer-fgsm.json"}
    wider = replace(ATTACKED, attacks={"K4": ({**ATTACKED.attacks["K4"][0], "eps": "0,0.1,0.2"},)})
    more = planning.plan(setups, wider, None, **folders)
    assert [planning.is_done(job) for job in more] == [True, True, False, False], "a radius more is not yet measured"


def test_a_run_whose_weights_are_gone_is_trained_anew_for_its_next_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setups, folders = [SETUPS["K4"]], {"results": tmp_path / "results", "work": tmp_path / "runs"}
    first, second = ({"attacks": name, "eps": "0,0.1", "subset": 20, "checks": False} for name in ("fgsm", "uniform"))
    assert run(planning.plan(setups, replace(ATTACKED, seeds=1, attacks={"K4": (first,)}), None, **folders)) == []
    shutil.rmtree(tmp_path / "runs")
    jobs = planning.plan(setups, replace(ATTACKED, seeds=1, attacks={"K4": (first, second)}), None, **folders)
    standing = planning.sort_jobs(jobs)
    assert standing.missing == [jobs[0], jobs[2]]
    assert standing.done == [jobs[1]]
    assert standing.notes == ["note: runs trained anew to be attacked, since their weights are not here: 1"]
    with monkeypatch.context() as later:
        later.setattr(records, "code_hash", lambda: "0" * 12)
        assert planning.sort_jobs(jobs).notes[1:] == [
            "note: other code trained 1 of these; if the weights differ now, no attack is added to their points"
        ]
    assert study.share(standing.missing) == standing.missing
    assert run(standing.missing) == []
    assert all(planning.is_done(job) for job in jobs)
    attacks = tmp_path / "results/tiny/K4/seed-1/attacks"
    found = [point for name in ("fgsm", "uniform") for point in load_points(file_of(attacks.parent, name, "linf"))]
    assert len(found) == 4
    assert len({point.weights for point in found}) == 1, "the same seed makes the same weights"
    worst = load_points(file_of(attacks.parent, WORST, "linf"))
    assert worst
    assert all(point.settings == {"attacks": ["fgsm", "uniform"]} for point in worst), "over the earlier attack too"


def test_two_studies_over_one_run_lose_no_points_of_each_other(tmp_path: Path) -> None:
    """Each has results of its own, so that what lies beside the weights may lack what one of them has."""
    first, second = ({"attacks": "fgsm", "eps": eps, "subset": 20, "checks": True} for eps in ("0,0.1", "0,0.2"))

    def study_of(results: str, *attacks: dict[str, Any]) -> list[planning.Job]:
        preset = replace(ATTACKED, seeds=1, attacks={"K4": attacks})
        return planning.plan([SETUPS["K4"]], preset, None, results=tmp_path / results, work=tmp_path / "runs")

    one = study_of("one", first)
    assert run(one) == []
    shutil.rmtree(tmp_path / "runs/tiny/K4/seed-1/attacks")
    assert run(study_of("two", second)) == []
    kept = tmp_path / "one/tiny/K4/seed-1"
    before, checks = load_points(file_of(kept, "fgsm", "linf")), load_checks(kept)
    assert run(study_of("one", first, second)[2:]) == []
    after = {p.key: p.answers for p in load_points(file_of(kept, "fgsm", "linf"))}
    assert sorted(eps for eps, *_ in after) == [0.0, 0.1, 0.2]
    assert all(after[p.key] == p.answers for p in before)
    assert all(check in load_checks(kept) for check in checks)
    assert len(load_checks(kept)) == 2
    assert all(planning.is_done(job) for job in study_of("one", first, second))


def test_broken_points_beside_the_weights_fail_that_attack_alone(tmp_path: Path) -> None:
    jobs = planning.plan([SETUPS["K4"]], ATTACKED, None, results=tmp_path / "results", work=tmp_path / "runs")
    trained, attacks = jobs[:2], jobs[2:4]
    assert run(trained) == []
    save_points(attacks[0].results[0] / "attacks/fgsm.json", [])
    broken = attacks[0].work / "attacks/fgsm.json"
    broken.parent.mkdir()
    broken.write_text("{")
    (failure,) = run(attacks)
    assert failure.name == attacks[0].name
    assert str(broken) in failure.reason
    assert "delete it to measure again" in failure.reason
    assert study.failure_file(attacks[0]).is_file()
    assert planning.is_done(attacks[1]), "the other run goes on"
    assert broken.read_text() == "{"


def test_points_of_other_weights_are_kept_and_told(tmp_path: Path) -> None:
    (train,) = planned(tmp_path, "K4")
    kept(train)
    points(train.results[0], "fgsm", SETTINGS, weights="another")
    before = {path: path.read_bytes() for path in train.results[0].rglob("*.json")}
    attack = replace(train, attack=FGSM | {"eps": "0.2"}, needs=(train.work / "record.json",))
    failures = run([train, attack])
    assert [failure.name for failure in failures] == ["K4 seed 1", "K4 seed 1: fgsm"]
    for failure in failures:
        assert re.fullmatch(
            rf"its points are of other weights \(another, now \w{{16}}\); move {train.results[0]} away .*",
            failure.reason,
        )
    assert {path: path.read_bytes() for path in before} == before
    assert not file_of(train.work, "fgsm", "linf").exists(), "an attack that could not count is not begun"
    assert [job for job, _ in planning.sort_jobs([train, attack]).other] == [attack]


def test_two_attacks_on_one_run_wait_for_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each would write what the other does not know."""
    one = replace(ATTACKED, seeds=1)
    both = ({"attacks": "fgsm", "eps": "0,0.1", "subset": n, "checks": False} for n in (20, 30))
    jobs = planning.plan(
        [SETUPS["K4"]],
        replace(one, attacks={"K4": tuple(both)}),
        None,
        results=tmp_path / "results",
        work=tmp_path / "runs",
    )
    assert study.run_jobs(jobs, processes=3, threads=1, show=Show()) == []
    said = [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines() if line.startswith("K4 seed 1")]
    assert said == ["begun", "done"] * 3
    points = json.loads((tmp_path / "results/tiny/K4/seed-1/attacks/fgsm.json").read_text())["points"]
    assert [(point["total"], point["eps"]) for point in points] == [(20, 0), (20, 0.1), (30, 0), (30, 0.1)]


def test_a_failed_attack_stays_listed_until_it_succeeds_itself(tmp_path: Path) -> None:
    setups, folders = [SETUPS["K4"]], {"results": tmp_path / "results", "work": tmp_path / "runs"}
    fine = {"attacks": "fgsm", "eps": "0,0.1", "subset": 20, "checks": False}
    both = replace(ATTACKED, seeds=1, attacks={"K4": ({**fine, "norm": "l2", "attacks": "fgsm-normalised"}, fine)})
    train, bad, good = planning.plan(setups, both, None, **folders)
    assert len({study.failure_file(job) for job in (train, bad, good)}) == 3
    (failure,) = run([train, bad, good])
    assert failure.name == "K4 seed 1: fgsm-normalised"
    assert [planning.is_done(job) for job in (train, bad, good)] == [True, False, True]
    listed = [measured.Failed(failure.name, failure.reason)]
    assert measured.load_failed(folders["results"]) == listed
    study.forget_failure(train)
    assert measured.load_failed(folders["results"]) == listed, "nor does the training of the run remove it"
    assert measured.load(folders["results"])[0].points
    mended = replace(bad, attack={**fine, "subset": 30})
    study.failure_file(bad).parent.rename(study.failure_file(mended).parent)
    assert run([mended]) == []
    assert measured.load_failed(folders["results"]) == []
    assert not list(folders["results"].rglob("failed*"))


FGSM = {"attacks": "fgsm", "eps": "0,0.1", "subset": 100, "checks": False}
SETTINGS: dict[str, Any] = {"draws": 1, "seed": 1}
ACTIVELY = {"draws": 1, "verdicts": 3, "mode": f"{ACTIVE}, a published mistake", "seed": 1}
IN_EVAL = {**FGSM, "draws": 1, "verdicts": 3, "batchout_in_eval": True}
PGD = {"draws": 1, "early_stop": True, "restarts": 5, "steps": 50, "seed": 1}


def points(folder: Path, attack: str, settings: dict[str, Any], *, total: int = 100, weights: str = "a") -> None:
    """Put the points of a curve into a folder, beside what is there."""
    more = {"correct": 1, "wilson": (0, 1), "answers": "1", "subset": "s", "norm": "linf"}
    file = file_of(folder, attack, "linf")
    new = [Point(attack=attack, eps=eps, total=total, weights=weights, settings=settings, **more) for eps in (0.0, 0.1)]
    save_points(file, [*load_points(file), *new])


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
    kept(train)
    for attack, settings, more in found:
        points(train.results[0], attack, {k: v for k, v in settings.items() if v is not ...}, **more)
    assert planning.is_done(replace(train, attack=asked)) == is_done


def test_the_checks_of_an_attack_are_those_asked_for(tmp_path: Path) -> None:
    (train,) = planned(tmp_path, "K4")
    kept(train)
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
        assert planning.is_done(job) == (place == 4), "the radius is chosen by what was measured"


def test_points_of_other_weights_do_not_count(tmp_path: Path) -> None:
    """Where the weights lie here, and are those of the record that is kept."""
    (train,) = planned(tmp_path, "K4")
    record, job = kept(train), replace(train, attack=FGSM)
    points(train.results[0], "fgsm", SETTINGS, weights="a")
    train.work.mkdir(parents=True)
    (train.work / "weights.safetensors").write_bytes(b"other ones")
    assert planning.is_done(job), "nothing says whose weights these are"
    (train.work / "record.json").write_bytes(record.read_bytes().replace(b'"seconds": 12.5', b'"seconds": 13.5'))
    assert planning.is_done(job), "they are of another run than the record"
    here = json.loads(record.read_text())
    here["study"] = None
    (train.work / "record.json").write_text(json.dumps(here))
    assert not planning.is_done(job)
    points(train.results[0], "fgsm", SETTINGS, weights=targets._hash_of_weights(train.work))
    assert planning.is_done(job)


def test_the_attacks_that_need_one_answer_for_one_image_are_known_without_torch() -> None:
    assert set(matching._ALONE) == {name for name, attack in ATTACKS.items() if attack.fixed}
    assert set(BLIND) == {name for name, attack in ATTACKS.items() if not attack.looks}


def test_seeds_of_the_preset_are_those_of_each_set_up(tmp_path: Path) -> None:
    more = replace(TINY, seeds=1, more_seeds={"H5": 3})
    jobs = planning.plan([SETUPS["K4"], SETUPS["H5"]], more, None, results=tmp_path, work=tmp_path)
    assert [job.name for job in jobs] == ["K4 seed 1", "H5 seed 1", "H5 seed 2", "H5 seed 3"]


def kept(job: planning.Job, **config: Any) -> Path:
    """A record as the study would keep it, with the config changed; nothing is trained."""
    record = copy.deepcopy(FULL) | {"seed": job.flags["manual_seed"]}
    record["config"] = json.loads(json.dumps({**job.flags, "dataset_train": "shown otherwise", **config}))
    path = job.results[0] / "record.json"
    records.save(records.Record.model_validate(record), path)
    return path


def test_a_record_of_other_settings_is_neither_done_nor_run(tmp_path: Path) -> None:
    setups, folders = [SETUPS["K4"]], {"results": tmp_path / "results", "work": tmp_path / "runs"}
    train, *attacks = planning.plan(setups, replace(ATTACKED, seeds=1), [1], **folders)
    kept(train)
    assert planning.is_done(train)
    path = kept(train, learning_rate=0.25, nepochs=3)
    standing = planning.sort_jobs([train, *attacks])
    assert (standing.done, standing.missing) == ([], []), "what attacks such a run is no better"
    assert [job for job, _ in standing.other] == [train, *attacks]
    assert standing.other[0][1] == (
        f"its record is of other settings (nepochs 3, now 2; learning_rate 0.25, now {train.flags['learning_rate']}); "
        f"move {path.parent} away to run it anew"
    )
    path.unlink()
    assert planning.sort_jobs([train]).missing == [train]


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
    kept(replace(job, flags=flags), **found)
    assert planning.is_done(replace(job, flags={**job.flags, **asked})) == is_same


def test_what_was_begun_with_other_settings_is_not_kept_as_what_is_asked_for(tmp_path: Path) -> None:
    """A run goes on with the settings that it was begun with: those of a preset as it was."""
    (before,) = planned(tmp_path, "K4")
    assert run([before]) == []
    record = before.results[0] / "record.json"
    record.unlink()
    (job,) = planned(tmp_path, "K4", preset=replace(TINY, flags={**TINY.flags, "nepochs": 1}))
    ((_, why),) = planning.sort_jobs([job]).other
    assert why == f"its record is of other settings (nepochs 2, now 1); move {job.work} away to run it anew"
    (failure,) = run([job])
    assert failure.reason == why
    assert not record.exists()


def test_records_of_several_versions_are_told_apart(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "K4", "H5", seeds=3)
    for job in jobs:
        kept(job)
    assert planning.sort_jobs(jobs).notes == []
    for job, code in zip(jobs, ("abcdef123456", "abcdef123456", "", "", "", ""), strict=True):
        path = job.results[0] / "record.json"
        content = json.loads(path.read_text())
        content["environment"]["code"] = code
        content["data"]["hashes"]["train"] = "feedbeef" if job is jobs[5] else "0123456789"
        path.write_text(json.dumps(content))
    name = FULL["data"]["train"]
    assert planning.sort_jobs(jobs).notes == [
        "note: the records come from 2 versions of the code: 2 of abcdef, 4 of unknown",
        "note: the records come from 2 versions of digits: "
        f"5 of {name} test cd train 012345, 1 of {name} test cd train feedbe",
    ]
    other = replace(jobs[5], flags={**jobs[5].flags, "classes": ("0", "1")})
    path = jobs[5].results[0] / "record.json"
    path.write_text(path.read_text().replace('"config": {', '"config": {"classes": ["0", "1"], ', 1))
    assert len(planning.sort_jobs([*jobs[:5], other]).notes) == 1, "other data were asked for"


def test_a_run_that_fails_is_listed_and_tried_again(tmp_path: Path) -> None:
    bad = replace(SETUPS["K4"], id="bad", flags={**SETUPS["K4"].flags, "depth": 3})
    jobs = planning.plan([bad, SETUPS["H5"]], TINY, [1], results=tmp_path / "results", work=tmp_path / "runs")
    (failure,) = run(jobs)
    assert failure.name == "bad seed 1"
    assert "--depth given, but perturb_resnet18 does not read it" in failure.reason
    written = json.loads((tmp_path / "results/tiny/bad/seed-1/failed.json").read_text())
    assert written["reason"] == failure.reason
    assert [planning.is_done(job) for job in jobs] == [False, True], "the other run went on"
    good = [replace(jobs[0], flags={k: v for k, v in jobs[0].flags.items() if k != "depth"})]
    assert run(good) == []
    assert not (tmp_path / "results/tiny/bad/seed-1/failed.json").exists()


def test_a_run_that_is_killed_is_told_as_killed_and_done_by_the_next_call(tmp_path: Path) -> None:
    """Not with what an earlier attempt has left in the log."""
    endless = replace(TINY, flags={**TINY.flags, "nepochs": 10**6})
    jobs = planned(tmp_path, "K4", preset=endless)
    jobs[0].work.parent.mkdir(parents=True)
    study._log(jobs[0]).write_text("of another time\n")
    killed = list[int]()

    def kill() -> bool:
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            mine = str(jobs[0].work) in Path(f"/proc/{pid}/cmdline").read_text()
            if mine and jobs[0].work.is_dir() and not killed:
                assert os.getpgid(int(pid)) != os.getpgid(0), "the Ctrl-C of a terminal must not reach it twice"
                os.kill(int(pid), signal.SIGKILL)
                killed.append(int(pid))
        return False

    (failure,) = run(jobs, stop=kill)
    assert killed
    assert failure.reason == "its process was ended by SIGKILL; the same command goes on with it"


def test_what_a_killed_study_leaves_is_swept(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "K4")
    jobs[0].results[0].mkdir(parents=True)
    (jobs[0].results[0] / ".record.json.1.part").write_text("half of")
    assert run(jobs) == []
    assert {path.name for path in jobs[0].results[0].iterdir()} == {"record.json", "metrics.jsonl"}


def test_a_stop_ends_cleanly_and_the_next_call_goes_on(tmp_path: Path) -> None:
    endless = replace(TINY, flags={**TINY.flags, "nepochs": 10**6})
    jobs = planned(tmp_path, "K4", preset=endless)
    checkpoint = tmp_path / "runs/tiny/K4/seed-1/checkpoint.pt"

    def stop() -> bool:
        """As soon as it trains; the stop itself writes the checkpoint."""
        return jobs[0].work.is_dir()

    assert run(jobs, stop=stop) == []
    assert not planning.is_done(jobs[0])
    assert checkpoint.is_file()
    assert "--resume" in study.argv(jobs[0], 1)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_run_that_is_only_just_starting_hears_the_stop(ignored: bool, tmp_path: Path) -> None:
    """Also where a shell has started the study in the background, with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        (job,) = planned(tmp_path, "K4")
        assert run([job], stop=job.work.with_name("seed-1.log").is_file) == []
    finally:
        signal.signal(signal.SIGINT, before)
    assert not planning.is_done(job), "it went on to its end"
    assert not list(tmp_path.rglob(study.FAILED)), "it did not fail: the same command does it"


def test_a_second_study_is_kept_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom perturblab.files import locked\n"
        f"with locked(Path({str(tmp_path)!r}), 'busy'):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        line = f"run K4 --seeds 1 --results {tmp_path} --work {tmp_path}/runs"
        code, out, err = tell(line, capsys)
        assert (code, out, err.count("\n")) == (2, "", 2), "one line of the plan, one of the mistake"
        assert f"another study is at work in {tmp_path}; wait for it, or choose another --results" in err
        other.kill()
    with locked(tmp_path, "busy"):
        pass
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_runs_end_with_a_study_that_is_killed(tmp_path: Path) -> None:
    line = f"run K4 --preset quick --seeds 1 --results {tmp_path}/results --work {tmp_path}/runs --jobs 1"
    begun = subprocess.Popen(
        [sys.executable, "-m", "perturblab", *shlex.split(line)], stderr=subprocess.PIPE, env={**os.environ}
    )
    assert begun.stderr is not None
    while b"begun" not in (said := begun.stderr.readline()):
        assert said, "the study ended before it began a run"
    children = Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()
    assert len(children) == 1
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    begun.stderr.close()
    until = time.monotonic() + 60
    while Path(f"/proc/{children[0]}").exists() and not _is_zombie(children[0]):
        assert time.monotonic() < until, "the run outlived its study"
        time.sleep(0.2)


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


# --- the commands ---------------------------------------------------------------------------------------------------


def test_a_cluster_leaves_attacks_out_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"run BO-mnist-none --preset robust --seed 1 --results {tmp_path} --work {tmp_path} --dry-run"
    assert tell(line, capsys)[1].splitlines()[1:] == [
        f"BO-mnist-none seed 1: {attacks}" for attacks in ("fgsm,deepfool,deepfool-unclipped", "fgsm,pgd", "autoattack")
    ]
    code, out, err = tell(f"{line} --on ray", capsys)
    assert (code, out) == (0, "BO-mnist-none seed 1\n")
    assert err.splitlines() == [
        "3 attacks are left out: the weights stay where a run is trained; attack without --on there",
        "robust: 1 runs, 0 done, 1 missing",
    ]


def test_list_show_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "quick", replace(TINY, name="quick", setups=("K4",)))
    results = f"--results {tmp_path}/results"
    (tmp_path / "results").mkdir()
    code, out, _ = tell("list --tag pnn --json", capsys)
    assert code == 0
    assert {"K4", "K5", "R-noise"} <= {entry["id"] for entry in json.loads(out)}
    code, out, _ = tell("list --tag ladder", capsys)
    assert re.search(r"^R-K3-adam +above 0  claim", out, re.MULTILINE), "a tag of claims alone"
    assert tell("list --tag pnn,batchout", capsys)[0] == 2
    _, out, _ = tell(f"show K4 {results}", capsys)
    assert "85.5" in out
    assert "measured: not yet" in out
    line = f"run --seeds 1 --jobs 1 {results} --work {tmp_path}/runs"
    assert tell(f"{line} --dry-run", capsys)[1] == "K4 seed 1\n"
    code, out, _ = tell(line, capsys)
    assert (code, out) == (0, f"1 runs done, 0 failed; records: {tmp_path}/results/quick\n")
    assert tell(line, capsys)[1] == "nothing is missing\n"
    (last,) = json.loads(tell(f"show K4 --json {results}", capsys)[1])["measured"]
    assert (last["setup"], last["preset"], last["seed"], last["total"]) == ("K4", "quick", 1, 597)
    out = tell(f"show K4 {results}", capsys)[1]
    assert f"  at quick, seed 1: {last['correct']}/597 clean images = " in out


def test_what_is_of_other_settings_or_versions_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "quick", replace(TINY, name="quick", setups=("K4", "H5"), seeds=2))
    jobs = planned(tmp_path, "K4", "H5", seeds=2, preset=presets.PRESETS["quick"])
    line = f"run --results {tmp_path}/results --work {tmp_path}/runs --dry-run"
    for number, job in enumerate(jobs):
        path = kept(job, learning_rate=0.25) if job.name == "H5 seed 2" else kept(job)
        path.write_text(path.read_text().replace("0123456789ab", f"{number % 2}23456789abc"))
    code, out, err = tell(line, capsys)
    assert (code, out) == (0, "nothing else is missing\n")
    assert err.splitlines() == [
        "quick: 4 runs, 3 done, 0 missing, 1 of other settings",
        "note: the records come from 2 versions of the code: 2 of 023456, 1 of 123456",
        f"H5 seed 2: its record is of other settings (learning_rate 0.25, now {jobs[3].flags['learning_rate']}); "
        f"move {jobs[3].results[0]} away to run it anew",
    ]
    before = path.read_bytes()
    assert tell(line.replace(" --dry-run", ""), capsys)[0] == 0
    assert path.read_bytes() == before, "nor is it overwritten"


def test_list_has_the_set_ups_that_nobody_published_too(capsys: pytest.CaptureFixture[str]) -> None:
    out = tell("list", capsys)[1]
    assert re.search(r"^A1-shift +- +set-up  ", out, re.MULTILINE)
    assert re.search(r"^H5-level-1 +- +set-up  ", out, re.MULTILINE)
    ids = [line.split()[0] for line in out.splitlines()]
    assert len(ids) == len(set(ids))
    assert set(ids) >= {*ENTRIES, *RELATIONS, *(s for s in SETUPS if s not in {e.setup for e in ENTRIES.values()})}
    listed = json.loads(tell("list --json", capsys)[1])
    assert [item["id"] for item in listed] == ids
    assert {item["id"] for item in listed if item.get("kind") == "set-up"} == {*ids} - {*ENTRIES} - {*RELATIONS}
    assert "A1-shift" not in tell("list --tag pnn", capsys)[1].split(), "set-ups have no tags"


# --- one command a run, for an array of jobs ------------------------------------------------------------------------


def test_every_printed_command_does_one_run_from_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = replace(SETUPS["K4"], id="K4-twin")
    monkeypatch.setitem(presets.PRESETS, "quick", replace(TINY, name="quick", setups=("K4", "H5", "K4-twin")))
    monkeypatch.setitem(SETUPS, "K4-twin", twin)
    (tmp_path / "at work").mkdir()
    monkeypatch.chdir(tmp_path / "at work")
    line = "run --seeds 2 --results '../the results' --work ../runs --print-commands"
    lines = tell(line, capsys)[1].splitlines()
    assert len(lines) == 4
    monkeypatch.chdir("/")
    done = set[Path]()
    for command in lines:
        program, *words = shlex.split(command)
        assert (program, words[:3]) == (sys.executable, ["-m", "perturblab", "run"])
        assert cli.main(words[2:]) == 0
        new = set((tmp_path / "the results").rglob("record.json")) - done
        assert len(new) == (2 if "K4-twin" in words else 1), "of this run, and no other"
        done |= new
    monkeypatch.chdir(tmp_path / "at work")
    capsys.readouterr()
    assert tell(line, capsys)[1] == "nothing is missing\n"
    record = next(path for path in done if path.parts[-3:-1] == ("K4", "seed-2"))
    record.unlink()
    assert tell(line, capsys)[1].splitlines() == [lines[2]], "only what is missing"


def test_calls_for_one_seed_keep_each_other_out_of_their_own_run_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "quick", replace(TINY, name="quick"))
    line = f"run K4 --jobs 1 --quiet --results {tmp_path}/results --work {tmp_path}/runs --seed"
    with locked(tmp_path / "results/quick/K4/seed-1", "busy"):
        code, _, err = tell(f"{line} 1", capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert "another study is at work in" in err
        assert tell(f"{line} 2", capsys)[0] == 0
        with locked(tmp_path / "results", "busy", shared=True):  # a third one
            assert tell(f"{line} 3", capsys)[0] == 0
            assert "another study is at work" in tell(line.replace("--seed", "--seeds 1"), capsys)[2]
    for folder, other in (("results", "runs"), ("runs", "results")):
        with locked(tmp_path / folder, "busy"):  # a whole study
            code, _, err = tell(f"{line} 1".replace(f"{tmp_path}/{other}", f"{tmp_path}/other"), capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert f"another study is at work in {tmp_path}/{folder}; wait for it, or choose another --" in err
    assert not (tmp_path / "results/quick/K4/seed-1/record.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a process its cores")
def test_an_array_of_jobs(tmp_path: Path) -> None:
    """As in docs/scaling.md, the tasks at once, without Slurm: it gives a core and a number, and runs the line."""
    flags = f"K4 H5 --preset quick --seeds 1 --results {tmp_path}/results --work {tmp_path}/runs --print-commands"
    run = [sys.executable, "-m", "perturblab", "run", *shlex.split(flags)]
    (tmp_path / "commands.txt").write_bytes(subprocess.run(run, check=True, capture_output=True).stdout)
    task = f"""eval "exec $(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {tmp_path}/commands.txt)\""""
    assert task.replace(f"{tmp_path}/", "") in (Path(__file__).parents[1] / "docs/scaling.md").read_text()
    tasks = [
        subprocess.Popen(
            ["sh", "-c", task],
            cwd="/",
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(number)},
            preexec_fn=lambda core=core: os.sched_setaffinity(0, {core}),
        )
        for number, core in zip((1, 2), itertools.cycle(os.sched_getaffinity(0)), strict=False)
    ]
    assert [process.wait() for process in tasks] == [0, 0]
    for name in ("K4", "H5"):
        record = records.load(tmp_path / f"results/quick/{name}/seed-1/record.json")
        assert record.study == records.Study(setup=name, preset="quick")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("show K44", r"nothing in the catalogue is called 'K44'; did you mean K4\?"),
        ("show r-NOISE", r"nothing in the catalogue is called 'r-NOISE'; did you mean R-noise\?"),
        ("list --tag nothing", "--tag got 'nothing': nothing in the catalogue is tagged 'nothing'; "),
        ("run --preset huge", "--preset got 'huge'; choose one of quick, cpu, cpu-all, robust, gpu, full"),
        ("run K4 --seeds 0", "--seeds got '0'"),
        ("run nothing", "nothing in the catalogue is called 'nothing'"),
        (f"run --dry-run --results {__file__}", ", which is a file; give a folder, which is made "),
        ("list --tag ''", "--tag got '': expected a tag, such as pnn"),
    ],
)
def test_mistakes_are_told_in_one_line(line: str, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = tell(line, capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert wrong.split(r"\?")[0] in err


def test_a_set_up_without_a_run_has_a_reason() -> None:
    assert all(isinstance(setup, Setup) for setup in SETUPS.values())
    assert all(setup.flags or setup.missing for setup in SETUPS.values())
