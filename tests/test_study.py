"""Studies: what is missing is run and attacked, once, and results are kept where they belong."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perturblab.records import numerics, store
from perturblab.records.attack_names import WORST
from perturblab.records.checks import load_checks
from perturblab.records.paths import RunFolder, file_of
from perturblab.records.points import load_points, save_points
from perturblab.records.record import Study
from perturblab.records.results import Failed, load_failed, load_results
from perturblab.studies import done, plan
from perturblab.studies.catalogue import SETUPS
from perturblab.studies.failures import failure_file, forget_failure
from perturblab.studies.job import Job
from perturblab.studies.jobs import run_jobs
from perturblab.studies.keep import share_records
from perturblab.system.terminal import Show
from studies import ATTACKED, FGSM, SETTINGS, TINY, keep_record, planned, points, run_all
from told import in_order


def test_what_is_missing_is_run_and_nothing_twice(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "K4", "H5")
    assert not any(done.is_done(job) for job in jobs)
    assert run_all(jobs) == []
    assert all(done.is_done(job) for job in jobs)
    for name in ("K4", "H5"):
        record = store.load_record(tmp_path / f"results/tiny/{name}/seed-1/record.json")
        assert record.study == Study(setup=name, preset="tiny")
        assert record.environment.code == numerics.code_hash()
        assert len((tmp_path / f"results/tiny/{name}/seed-1/metrics.jsonl").read_text().splitlines()) == 2
        assert not (tmp_path / f"results/tiny/{name}/seed-1/weights.safetensors").exists()


@pytest.mark.usefixtures("in_process")
def test_what_is_trained_is_attacked_as_the_preset_says(tmp_path: Path) -> None:
    setups, folders = [SETUPS["K4"]], {"results": tmp_path / "results", "work": tmp_path / "runs"}
    jobs = plan.plan(setups, ATTACKED, None, **folders)
    assert [job.name for job in jobs] == [
        *("K4 seed 1", "K4 seed 2"),
        *(f"K4 seed {seed}: {names}" for names in ("fgsm,deepfool", "transfer-fgsm") for seed in (1, 2)),
    ]
    assert [Path(job.attack["source"]).name for job in jobs if "source" in job.attack] == ["seed-2", "seed-1"]
    trained, attacks = jobs[:2], jobs[2:]
    failures = run_all(attacks)
    assert failures
    assert all(re.search(in_order("run not trained ; repeat command"), failure.reason) for failure in failures)
    assert not list((tmp_path / "results").rglob("*.json")), "nothing is written for what could not begin"
    assert run_all(trained) == []
    assert not any(done.is_done(job) for job in attacks)
    assert run_all(jobs[2:]) == []
    assert all(done.is_done(job) for job in jobs)
    kept = tmp_path / "results" / "tiny" / "K4" / "seed-1" / "attacks"
    assert {path.name for path in kept.glob("*.json")} >= {"fgsm.json", "deepfool.json", "transfer-fgsm.json"}
    wider = replace(ATTACKED, attacks={"K4": ({**ATTACKED.attacks["K4"][0], "eps": "0,0.1,0.2"},)})
    more = plan.plan(setups, wider, None, **folders)
    assert [done.is_done(job) for job in more] == [True, True, False, False], "a radius more is not yet measured"


@pytest.mark.usefixtures("in_process")
def test_a_run_whose_weights_are_gone_is_trained_anew_for_its_next_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setups, folders = [SETUPS["K4"]], {"results": tmp_path / "results", "work": tmp_path / "runs"}
    first, second = ({"attacks": name, "eps": "0,0.1", "subset": 20, "checks": False} for name in ("fgsm", "uniform"))
    assert run_all(plan.plan(setups, replace(ATTACKED, seeds=1, attacks={"K4": (first,)}), None, **folders)) == []
    shutil.rmtree(tmp_path / "runs")
    jobs = plan.plan(setups, replace(ATTACKED, seeds=1, attacks={"K4": (first, second)}), None, **folders)
    standing = plan.sort_jobs(jobs)
    assert standing.missing == [jobs[0], jobs[2]]
    assert standing.done == [jobs[1]]
    (note,) = standing.notes
    assert re.search(in_order("runs weights 1"), note)
    with monkeypatch.context() as later:
        later.setattr(numerics, "code_hash", lambda: "0" * 12)
        assert plan.sort_jobs(jobs).notes[1:] == [], "other sources are no other numbers"
        later.setattr(numerics, "NUMERICS", numerics.NUMERICS + 1)
        (note,) = plan.sort_jobs(jobs).notes[1:]
        assert re.search(in_order("1 numerics number"), note)
    assert share_records(standing.missing) == standing.missing
    assert run_all(standing.missing) == []
    assert all(done.is_done(job) for job in jobs)
    attacks = tmp_path / "results/tiny/K4/seed-1/attacks"
    found = [point for name in ("fgsm", "uniform") for point in load_points(file_of(attacks.parent, name, "linf"))]
    assert len(found) == 4
    assert len({point.weights for point in found}) == 1, "the same seed makes the same weights"
    worst = load_points(file_of(attacks.parent, WORST, "linf"))
    assert worst
    assert all(point.settings == {"attacks": ["fgsm", "uniform"]} for point in worst), "over the earlier attack too"


@pytest.mark.usefixtures("in_process")
def test_two_studies_over_one_run_lose_no_points_of_each_other(tmp_path: Path) -> None:
    """Each has results of its own, so that what lies beside the weights may lack what one of them has."""
    little = {"subset": 20, "steps": 2, "restarts": 1, "queries": 15}
    first, second = ({"attacks": "fgsm", "eps": eps, "checks": True, **little} for eps in ("0,0.1", "0,0.2"))

    def study_of(results: str, *attacks: dict[str, Any]) -> list[Job]:
        preset = replace(ATTACKED, seeds=1, attacks={"K4": attacks})
        return plan.plan([SETUPS["K4"]], preset, None, results=tmp_path / results, work=tmp_path / "runs")

    one = study_of("one", first)
    assert run_all(one) == []
    shutil.rmtree(tmp_path / "runs/tiny/K4/seed-1/attacks")
    assert run_all(study_of("two", second)) == []
    kept = tmp_path / "one/tiny/K4/seed-1"
    before, checks = load_points(file_of(kept, "fgsm", "linf")), load_checks(RunFolder(kept).checks)
    assert run_all(study_of("one", first, second)[2:]) == []
    after = {p.key: p.answers for p in load_points(file_of(kept, "fgsm", "linf"))}
    assert sorted(eps for eps, *_ in after) == [0.0, 0.1, 0.2]
    assert all(after[p.key] == p.answers for p in before)
    assert all(check in load_checks(RunFolder(kept).checks) for check in checks)
    assert len(load_checks(RunFolder(kept).checks)) == 2
    assert all(done.is_done(job) for job in study_of("one", first, second))


@pytest.mark.usefixtures("in_process")
def test_broken_points_beside_the_weights_fail_that_attack_alone(tmp_path: Path) -> None:
    jobs = plan.plan([SETUPS["K4"]], ATTACKED, None, results=tmp_path / "results", work=tmp_path / "runs")
    trained, attacks = jobs[:2], jobs[2:4]
    assert run_all(trained) == []
    save_points(attacks[0].results[0] / "attacks/fgsm.json", [])
    broken = attacks[0].work / "attacks/fgsm.json"
    broken.parent.mkdir()
    broken.write_text("{")
    (failure,) = run_all(attacks)
    assert failure.name == attacks[0].name
    assert str(broken) in failure.reason
    assert "delete it" in failure.reason
    assert failure_file(attacks[0]).is_file()
    assert done.is_done(attacks[1]), "the other run goes on"
    assert broken.read_text() == "{"


@pytest.mark.usefixtures("in_process")
def test_points_of_other_weights_are_kept_and_told(tmp_path: Path) -> None:
    (train,) = planned(tmp_path, "K4")
    keep_record(train)
    points(train.results[0], "fgsm", SETTINGS, weights="another")
    before = {path: path.read_bytes() for path in train.results[0].rglob("*.json")}
    attack = replace(train, attack=FGSM | {"eps": "0.2"}, needs=(train.work / "record.json",))
    failures = run_all([train, attack])
    assert [failure.name for failure in failures] == ["K4 seed 1", "K4 seed 1: fgsm"]
    for failure in failures:
        assert re.fullmatch(
            rf"its points .* other weights \(another, now \w{{16}}\); move {train.results[0]} away .*",
            failure.reason,
        )
    assert {path: path.read_bytes() for path in before} == before
    assert not file_of(train.work, "fgsm", "linf").exists(), "an attack that could not count is not begun"
    assert [job for job, _ in plan.sort_jobs([train, attack]).other] == [attack]


@pytest.mark.usefixtures("in_process")
def test_two_attacks_on_one_run_wait_for_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each would write what the other does not know."""
    one = replace(ATTACKED, seeds=1)
    both = ({"attacks": "fgsm", "eps": "0,0.1", "subset": n, "checks": False} for n in (20, 30))
    jobs = plan.plan(
        [SETUPS["K4"]],
        replace(one, attacks={"K4": tuple(both)}),
        None,
        results=tmp_path / "results",
        work=tmp_path / "runs",
    )
    assert run_jobs(jobs, processes=3, threads=1, show=Show()) == []
    said = [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines() if line.startswith("K4 seed 1")]
    assert said == ["begun", "done"] * 3
    points = json.loads((tmp_path / "results/tiny/K4/seed-1/attacks/fgsm.json").read_text())["points"]
    assert [(point["total"], point["eps"]) for point in points] == [(20, 0), (20, 0.1), (30, 0), (30, 0.1)]


@pytest.mark.usefixtures("in_process")
def test_a_failed_attack_stays_listed_until_it_succeeds_itself(tmp_path: Path) -> None:
    setups, folders = [SETUPS["K4"]], {"results": tmp_path / "results", "work": tmp_path / "runs"}
    fine = {"attacks": "fgsm", "eps": "0,0.1", "subset": 20, "checks": False}
    both = replace(ATTACKED, seeds=1, attacks={"K4": ({**fine, "norm": "l2", "attacks": "fgsm-normalised"}, fine)})
    train, bad, good = plan.plan(setups, both, None, **folders)
    assert len({failure_file(job) for job in (train, bad, good)}) == 3
    (failure,) = run_all([train, bad, good])
    assert failure.name == "K4 seed 1: fgsm-normalised"
    assert [done.is_done(job) for job in (train, bad, good)] == [True, False, True]
    listed = [Failed(failure.name, failure.reason)]
    assert load_failed(folders["results"]) == listed
    forget_failure(train)
    assert load_failed(folders["results"]) == listed, "nor does the training of the run remove it"
    assert load_results(folders["results"])[0].points
    mended = replace(bad, attack={**fine, "subset": 30})
    failure_file(bad).parent.rename(failure_file(mended).parent)
    assert run_all([mended]) == []
    assert load_failed(folders["results"]) == []
    assert not list(folders["results"].rglob("failed*"))


@pytest.mark.usefixtures("in_process")
def test_what_was_begun_with_other_settings_is_not_kept_as_what_is_asked_for(tmp_path: Path) -> None:
    """A run goes on with the settings that it was begun with: those of a preset as it was."""
    (before,) = planned(tmp_path, "K4")
    assert run_all([before]) == []
    record = before.results[0] / "record.json"
    record.unlink()
    (job,) = planned(tmp_path, "K4", preset=replace(TINY, flags={**TINY.flags, "nepochs": 1}))
    ((_, why),) = plan.sort_jobs([job]).other
    assert f"(nepochs 2, now 1); move {job.work} away" in why
    (failure,) = run_all([job])
    assert failure.reason == why
    assert not record.exists()
