"""`perturblab run`, `list` and `show`: what they print, and one command per run for an array of jobs."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from builders import Tell
from perturblab.cli import main
from perturblab.records import store
from perturblab.records.record import Study
from perturblab.studies import presets
from perturblab.studies.catalogue import CLAIMS, FIGURES, SETUPS
from perturblab.system.files import locked
from studies import ONCE, TINY, keep_record, planned
from told import in_order

# --- the commands ----------------------------------------------------------------------------------------------------


def test_a_cluster_leaves_attacks_out_and_says_so(tmp_path: Path, tell: Tell) -> None:
    line = f"run BO-mnist-none --preset robust --seed 1 --results {tmp_path} --work {tmp_path} --dry-run"
    assert tell(line)[1].splitlines()[1:] == [
        f"BO-mnist-none seed 1: {attacks}" for attacks in ("fgsm,deepfool,deepfool-unclipped", "fgsm,pgd", "autoattack")
    ]
    code, out, err = tell(f"{line} --on ray")
    assert (code, out) == (0, "BO-mnist-none seed 1\n")
    left_out, counts = err.splitlines()
    assert re.search(in_order("3 attacks weights ; without --on"), left_out)
    assert re.search(in_order("robust: 1 runs 0 done 1 missing"), counts)


@pytest.mark.usefixtures("in_process")
def test_list_show_and_run(tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "quick", replace(ONCE, setups=("K4",)))
    results = f"--results {tmp_path}/results"
    (tmp_path / "results").mkdir()
    code, out, _ = tell("list --tag pnn --json")
    assert code == 0
    assert {"K4", "K5", "R-noise"} <= {published["id"] for published in json.loads(out)}
    code, out, _ = tell("list --tag ladder")
    assert re.search(r"^R-K3-adam +above 0  claim", out, re.MULTILINE), "a tag of claims alone"
    assert tell("list --tag pnn,batchout")[0] == 2
    _, out, _ = tell(f"show K4 {results}")
    assert "85.5" in out
    assert "measured: not yet" in out
    line = f"run --seeds 1 --jobs 1 {results} --work {tmp_path}/runs"
    assert tell(f"{line} --dry-run")[1] == "K4 seed 1\n"
    code, out, _ = tell(line)
    assert (code, out) == (0, f"1 runs done, 0 failed; records: {tmp_path}/results/quick\n")
    assert tell(line)[1] == "nothing is missing\n"
    (last,) = json.loads(tell(f"show K4 --json {results}")[1])["measured"]
    assert (last["setup"], last["preset"], last["seed"], last["total"]) == ("K4", "quick", 1, 597)
    out = tell(f"show K4 {results}")[1]
    assert f"  at quick, seed 1: {last['correct']}/597 clean images = " in out


def test_what_is_of_other_settings_or_versions_is_told(
    tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "quick", replace(TINY, name="quick", setups=("K4", "H5"), seeds=2))
    jobs = planned(tmp_path, "K4", "H5", seeds=2, preset=presets.PRESETS["quick"])
    line = f"run --results {tmp_path}/results --work {tmp_path}/runs --dry-run"
    for number, job in enumerate(jobs):
        path = keep_record(job, learning_rate=0.25) if job.name == "H5 seed 2" else keep_record(job)
        path.write_text(path.read_text().replace('"numerics": 1', f'"numerics": {number % 2}'))
    code, out, err = tell(line)
    assert (code, out.count("\n")) == (0, 1)
    assert re.search(in_order("nothing missing"), out)
    counts, note, other = err.splitlines()
    assert re.search(in_order("quick: 4 runs 3 done 0 missing 1 other settings"), counts)
    assert re.search(in_order("2 numerics 2 of 0 1 of 1"), note)
    told = in_order(f"H5 seed 2: learning_rate 0.25 {jobs[3].flags['learning_rate']} ; move {jobs[3].results[0]}")
    assert re.search(told, other)
    before = path.read_bytes()
    assert tell(line.replace(" --dry-run", ""))[0] == 0
    assert path.read_bytes() == before, "nor is it overwritten"


def test_list_has_the_set_ups_that_nobody_published_too(tell: Tell) -> None:
    out = tell("list")[1]
    assert re.search(r"^A1-shift +- +set-up  ", out, re.MULTILINE)
    assert re.search(r"^H5-level-1 +- +set-up  ", out, re.MULTILINE)
    ids = [line.split()[0] for line in out.splitlines()]
    assert len(ids) == len(set(ids))
    assert set(ids) >= {*FIGURES, *CLAIMS, *(s for s in SETUPS if s not in {e.setup for e in FIGURES.values()})}
    listed = json.loads(tell("list --json")[1])
    assert [item["id"] for item in listed] == ids
    assert {item["id"] for item in listed if item.get("kind") == "set-up"} == {*ids} - {*FIGURES} - {*CLAIMS}
    assert "A1-shift" not in tell("list --tag pnn")[1].split(), "set-ups have no tags"


# --- one command a run, for an array of jobs -------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_every_printed_command_does_one_run_from_anywhere(
    tmp_path: Path, tell: Tell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = replace(SETUPS["K4"], id="K4-twin")
    monkeypatch.setitem(presets.PRESETS, "quick", replace(ONCE, setups=("K4", "H5", "K4-twin")))
    monkeypatch.setitem(SETUPS, "K4-twin", twin)
    (tmp_path / "at work").mkdir()
    monkeypatch.chdir(tmp_path / "at work")
    line = "run --seeds 2 --results '../the results' --work ../runs --print-commands"
    lines = tell(line)[1].splitlines()
    assert len(lines) == 4
    monkeypatch.chdir("/")
    done = set[Path]()
    for command in lines:
        program, *words = shlex.split(command)
        assert (program, words[:3]) == (sys.executable, ["-m", "perturblab", "run"])
        assert main.main(words[2:]) == 0
        new = set((tmp_path / "the results").rglob("record.json")) - done
        assert len(new) == (2 if "K4-twin" in words else 1), "of this run, and no other"
        done |= new
    monkeypatch.chdir(tmp_path / "at work")
    capsys.readouterr()
    assert tell(line)[1] == "nothing is missing\n"
    record = next(path for path in done if path.parts[-3:-1] == ("K4", "seed-2"))
    record.unlink()
    assert tell(line)[1].splitlines() == [lines[2]], "only what is missing"


@pytest.mark.usefixtures("in_process")
def test_calls_for_one_seed_keep_each_other_out_of_their_own_run_only(
    tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "quick", ONCE)
    line = f"run K4 --jobs 1 --quiet --results {tmp_path}/results --work {tmp_path}/runs --seed"
    with locked(tmp_path / "results/quick/K4/seed-1", "busy"):
        code, _, err = tell(f"{line} 1")
        assert (code, err.count("\n")) == (2, 1)
        assert "another study" in err
        assert tell(f"{line} 2")[0] == 0
        with locked(tmp_path / "results", "busy", shared=True):  # a third one
            assert tell(f"{line} 3")[0] == 0
            assert "another study" in tell(line.replace("--seed", "--seeds 1"))[2]
    for folder, other in (("results", "runs"), ("runs", "results")):
        with locked(tmp_path / folder, "busy"):  # a whole study
            code, _, err = tell(f"{line} 1".replace(f"{tmp_path}/{other}", f"{tmp_path}/other"))
        assert (code, err.count("\n")) == (2, 1)
        assert re.search(
            in_order(f"another study {tmp_path}/{folder} ; --{folder}".replace("runs ; --runs", "runs ; --work")), err
        )
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
        record = store.load_record(tmp_path / f"results/quick/{name}/seed-1/record.json")
        assert record.study == Study(setup=name, preset="quick")
