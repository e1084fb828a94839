"""`perturblab show`: measurements from the committed records, and the command that runs something."""

import json
import re
import shlex
from pathlib import Path

import pytest

from builders import Tell
from perturblab.cli.show import _how_to_run, _look_up
from perturblab.records import results
from perturblab.report import claims_table
from perturblab.studies.catalogue import CLAIMS, FIGURES, SETUPS
from perturblab.studies.presets import PRESETS
from perturblab.studies.setups import choose_setups
from told import in_order


def test_show_says_what_a_figure_is_about_and_not_the_clean_accuracy(tell: Tell) -> None:
    folder = Path(__file__).parents[1] / "results/robust"
    out = json.loads(tell(f"show BO5a-k0.5-fgsm-0.4 --json --results {folder}")[1])
    first = next(m for m in out["measured"] if m.get("figure"))
    assert (first["preset"], first["seed"]) == ("robust", 1)
    assert first["percent"] < 1, "under attack; the clean accuracy is 95 %"
    out = tell(f"show R-batchout-clean --results {folder}")[1]
    assert re.search(r"^  at robust, seed 1: -\d\.\d\d\b.*\blower$", out, re.MULTILINE)


def test_show_says_the_verdict_that_the_page_says(tell: Tell) -> None:
    folder = Path(__file__).parents[1] / "results"
    page = claims_table.claims_markdown(results.load_results(folder))
    for name in ("R-noise-K3", "R-batchout-fgsm-training", "R-A1-cnn", "R-noise"):
        said = json.loads(tell(f"show {name} --json --results {folder}")[1])["measured"]
        (verdict,) = {of["verdict"] for of in said if of.get("claim")}
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {CLAIMS[name].text} |"))
        assert line.endswith(f"| {verdict} |")


def test_show_refuses_a_folder_that_is_not_there_unless_it_is_the_default(
    tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tell("show K4")[1].endswith("measured: not yet\n")
    code, _, err = tell("show K4 --results nowhere")
    assert code == 2
    assert re.fullmatch(in_order("perturblab: error: nowhere folder ; give") + ".*\n", err)


@pytest.mark.parametrize(
    ("name", "run", "measured"),
    [
        ("K7", "perturblab run K7 --preset cpu --dataroot DATA", "not yet"),
        ("K4", "perturblab run K4 --preset quick", "not yet"),
        ("A1-shift", "perturblab run A1-shift --preset cpu-all --dataroot DATA", "not yet"),
        ("R-noise", "perturblab run R-noise --preset quick", "not yet"),
        ("R-smoothed", "perturblab run R-smoothed --preset full --dataroot DATA", "not yet"),
        ("BO5a-k0.5-fgsm-0.4", "perturblab run BO5a-k0.5-fgsm-0.4 --preset robust --dataroot DATA", "not yet"),
        ("R1-middle-0.2", "perturblab run R1-middle-0.2 --preset full --dataroot DATA", "not yet"),
        ("R1-standard-fgsm-1", "perturblab run R1-standard-fgsm-1 --preset full --dataroot DATA", "not yet"),
        ("R1-mnist-all-0.2", "perturblab run R1-mnist-all-0.2 --preset full --dataroot DATA", "cannot nothing"),
        ("P1", "cannot no run", "cannot no run"),
        ("H3", f"cannot {SETUPS['H3'].missing}", "cannot no run"),
        ("R-other-class", f"cannot no run ; {CLAIMS['R-other-class'].how}", "cannot no run"),
    ],
)
def test_show_says_how_it_is_run_and_why_it_is_not(
    name: str, run: str, measured: str, tmp_path: Path, tell: Tell
) -> None:
    lines = tell(f"show {name} --results {tmp_path}")[1].splitlines()
    assert re.match(in_order(f"run: {run}"), lines[-2])
    assert re.match(in_order(f"measured: {measured}"), lines[-1])
    said = json.loads(tell(f"show {name} --json --results {tmp_path}")[1])
    assert (said["measured"], "unmeasurable" in said) == ([], measured != "not yet")
    assert lines[-2].endswith(said["run"].get("command", said["run"].get("cannot")))
    assert said["run"].get("command", run) == run


def test_every_command_that_is_shown_can_be_given() -> None:
    for name in (*FIGURES, *CLAIMS, *SETUPS):
        run = _how_to_run(_look_up(name))
        if "command" in run:
            words = shlex.split(run["command"])
            assert choose_setups([name], PRESETS[words[words.index("--preset") + 1]])
            assert words[:3] == ["perturblab", "run", name]
