"""The demonstration, with fewer epochs on fewer images: every arm and seed, a table, nothing run twice."""

from pathlib import Path

import pytest

from perturblab import demo, execution, records
from perturblab.config import NetConfig
from perturblab.configured import build_net
from perturblab.models import Task, describe


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The demonstration, small, in an empty folder."""
    monkeypatch.setattr(demo, "RECIPE", {**demo.RECIPE, "nepochs": 1, "train_size": 40})
    monkeypatch.setattr(demo, "SEEDS", (1, 2))
    monkeypatch.chdir(tmp_path)
    return tmp_path / demo.FOLDER


def test_table_of_every_arm_with_a_verdict(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert len(list(small.glob("*/record.json"))) == 2 * len(demo.ARMS)
    assert "control" in out
    assert out.count("over 2 seeds;") == 2  # both other arms are compared
    assert f"{demo.FOLDER}/*/record.json" in out


def test_second_call_runs_only_what_is_missing_or_older(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo.main() == 0
    before = {path: path.stat().st_mtime_ns for path in small.glob("*/record.json")}
    (small / "noise-seed2/record.json").unlink()
    capsys.readouterr()
    assert demo.main() == 0
    assert "run 1/1: noise-seed2" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path.parent.name != "noise-seed2")
    monkeypatch.setattr(demo, "RECIPE", {**demo.RECIPE, "learning_rate": 1e-3})
    assert demo.main() == 0
    assert "run 6/6" in capsys.readouterr().err
    assert {r.config["learning_rate"] for r in records.load_all(small)} == {1e-3}


def test_interrupted_demonstration_says_how_to_go_on(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "execute", interrupt)
    assert demo.main() == 130
    assert "make demo goes on" in capsys.readouterr().err


def test_arms_are_matched_in_parameters() -> None:
    task = Task(10, 1, (8, 8))
    counts = []
    for arm in demo.ARMS.values():
        config = NetConfig.model_validate(arm)
        counts.append(describe(build_net(config, task, seed=1), task, config.net)["trainable"])
    assert max(counts) / min(counts) < 1.001
