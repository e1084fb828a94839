"""The progress figure: every metric there is, text that stays text, and the same bytes every time."""

import re
import xml.etree.ElementTree as ET

import pytest

from builders import metrics_row
from perturblab.errors import UserError
from perturblab.records.pictures import progress
from told import in_order


def epochs(n, *, audited=False):
    rows = []
    for epoch in range(n):
        row = {"epoch": epoch, "train_loss": 2.0 / (epoch + 1), "train_accuracy": 50.0 + epoch, "lr": 0.1}
        row |= {"val_loss": None, "val_accuracy": None}
        if audited:
            row |= {"val_loss": 2.1, "val_accuracy": 48.0, "exact": 47.0, "batch_mean": 47.1, "smoothed": 40.0}
            row |= {"batch_mean_truncated": 46.0}
        rows.append(metrics_row(**row))
    return rows


def texts(path):
    return [element.text for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_the_figure_has_a_legend_entry_for_each_metric_there_is(tmp_path):
    path = tmp_path / "new" / "progress.svg"
    progress.progress_svg(epochs(3, audited=True), path, "A run")
    words = texts(path)
    for name in ("test, exact", "test, smoothed", "test, batch mean", "test, batch mean, truncated"):
        assert words.count(name) == 1
    assert (words.count("train"), words.count("validation"), words.count("A run")) == (2, 2, 1)
    progress.progress_svg(epochs(3), path, "A run")
    assert texts(path).count("train") == 2
    assert not {"validation", "test, exact"} & set(texts(path))
    assert not any("one epoch" in text for text in texts(path))


def test_one_epoch_is_visible_and_says_so(tmp_path):
    path = tmp_path / "one.svg"
    progress.progress_svg(epochs(1), path, "one")
    assert any(re.search(in_order("one epoch no curve"), text) for text in texts(path))
    assert path.read_text().count("stroke: #0072b2") >= 4  # a marker and its legend entry in each panel


def test_a_hostile_title_is_text_only(tmp_path):
    progress.progress_svg(epochs(2), tmp_path / "t.svg", "<script>$\\frac$\n--> & x")
    assert "<script>$\\frac$ --> & x" in texts(tmp_path / "t.svg")
    assert "<script" not in (tmp_path / "t.svg").read_text()


def test_the_readers_settings_do_not_change_the_figure(tmp_path):
    import matplotlib

    progress.progress_svg(epochs(2), tmp_path / "a.svg", "t")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "other"}):
        progress.progress_svg(epochs(2), tmp_path / "b.svg", "t")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_no_epochs_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=in_order("rows epoch expected one ; draw")):
        progress.progress_svg([], tmp_path / "p.svg", "t")
    assert not list(tmp_path.iterdir())
