"""What `perturblab show` says of committed records."""

import json
import re
from pathlib import Path

import pytest

from test_study import tell


def test_show_says_what_a_figure_is_about_and_not_the_clean_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[1] / "results/robust"
    out = json.loads(tell(f"show BO5a-k0.5-fgsm-0.4 --json --results {folder}", capsys)[1])
    first = next(m for m in out["measured"] if m.get("figure"))
    assert (first["preset"], first["seed"]) == ("robust", 1)
    assert first["percent"] < 1, "under attack; the clean accuracy is 95 %"
    out = tell(f"show R-batchout-clean --results {folder}", capsys)[1]
    assert re.search(r"^  at robust, seed 1: -\d\.\d\d; over its seeds: lower$", out, re.MULTILINE)
