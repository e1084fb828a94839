"""Reports: the numbers of the records, honest words, the same bytes, and no way in for hostile text."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats as scipy_stats

import perturblab
from builders import columns, make, metrics_row
from perturblab import stats
from perturblab.errors import UserError
from perturblab.records import groups
from perturblab.report import groups_table
from told import in_order

SOURCES = str(Path(perturblab.__file__).parents[1])
HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "two\nlines\r\n| x |",
    "<!-- results:end -->",
    "![x](http://e.vil/p)",
    "\\|",
]
BEST = "Best epoch on test (selected on the test set, optimistic)"


def runs(counts, **settings):
    return [make(seed, correct, **settings) for seed, correct in enumerate(counts)]


BASE = runs([8500, 8512, 8507], label="base")
GOOD = runs([8600, 8611, 8609], label="good")


# Groups


def test_records_that_differ_in_seed_and_output_only_are_one_group():
    records = [make(2, out="runs/c"), make(0, out="runs/a", quiet=True), make(1, save="x", dataroot="data")]
    (group,) = groups.group(records)
    assert [r.seed for r in group.records] == [0, 1, 2]
    assert group.label == "resnet18, 64 filters"
    assert len(groups.group([make(0), make(1, train_only=None)])) == 1, "of before and after there was such a flag"
    assert len(groups.group([make(0), make(1, train_only="norms")])) == 2


def test_labels_say_what_differs_and_numbers_sort_by_value():
    records = [make(nmasks=16), make(nmasks=2), make(net_type="vgg19", nfilters=None), make(lr=0.5, nmasks=2)]
    assert [g.label for g in groups.group(records)] == [
        "resnet18, 64 filters (lr=0.1, nmasks=2)",
        "resnet18, 64 filters (lr=0.1, nmasks=16)",
        "resnet18, 64 filters (lr=0.5, nmasks=2)",
        "vgg19",
    ]


def test_a_label_of_the_config_wins_and_namesakes_stay_apart():
    labels = [
        g.label
        for g in groups.group([make(label="A"), make(label="A", lr=0.2), make(label=" "), make(x=1), make(x="1")])
    ]
    assert labels[:2] == ["A (lr=0.1)", "A (lr=0.2)"]
    assert len(set(labels)) == 5


def test_other_data_or_another_number_of_parameters_is_another_group():
    other = make(1, test="CIFAR-10.1")
    more = make(2).model_copy(update={"parameters": make().parameters.model_copy(update={"trainable": 5})})
    assert len(groups.group([make(0), other, more])) == 3


def test_a_copy_counts_once_and_a_contradiction_is_refused():
    copy = make(0, 8500).model_copy(update={"seconds": 9.0})
    (row,) = groups_table.group_rows([make(0, 8500), copy, make(1, 8510)])
    assert row.values == (85.0, 85.1)
    with pytest.raises(UserError, match=r"base .*seed 0 .*; keep one"):
        groups.group([make(0, 8500, label="base"), make(0, 8501, label="base")])


def test_an_interrupted_run_is_listed_and_never_averaged():
    broken = make(3, 100, status="interrupted", label="base")
    (row,) = groups_table.group_rows([*BASE, broken])
    assert (row.seeds, row.interrupted, row.interval.n) == ((0, 1, 2), (3,), 3)
    assert "3: interrupted" in columns(groups_table.groups_markdown([*BASE, broken]))[0]["Each seed"]
    (again,) = groups_table.group_rows([*BASE, make(2, 1, status="interrupted", label="base")])
    assert (again.seeds, again.interrupted) == ((0, 1, 2), ())  # finished by another run
    text = groups_table.groups_markdown([broken])
    assert columns(text)[0]["Accuracy, %"] == "no finished run"
    assert text.endswith("Epochs: none finished.\n")


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["a", "b"]), st.sampled_from([1, 2])), max_size=8, unique=True
    )
)
@settings(deadline=None, max_examples=40)
def test_groups_are_a_partition_whatever_the_order(keys):
    records = [make(seed, nmasks=n, x=x) for seed, x, n in keys]
    shuffled = random.Random(0).sample(records, len(records))
    found = groups.group(records)
    assert found == groups.group(shuffled)
    assert sorted(r.model_dump_json() for g in found for r in g.records) == sorted(r.model_dump_json() for r in records)
    assert len(found) == len({(x, n) for _, x, n in keys}) == len({g.label for g in found})


# Rows


def test_a_row_holds_exact_percentages_and_the_t_interval():
    (row,) = groups_table.group_rows(BASE)
    want = scipy_stats.t.interval(0.95, 2, np.mean([85, 85.12, 85.07]), scipy_stats.sem([85, 85.12, 85.07]))
    assert row.values == (85.0, 85.12, 85.07)
    assert (row.interval.low, row.interval.high) == pytest.approx(want)
    assert (row.label, row.trainable, row.seeds, row.wilson, row.comparison) == (
        "base",
        11173962,
        (0, 1, 2),
        None,
        None,
    )


def test_the_control_comes_first_and_others_are_paired_by_seed():
    rows = groups_table.group_rows([*BASE, *GOOD, *runs([8400, 8480], label="alone")], "base")
    assert [row.label for row in rows] == ["base", "alone", "good"]
    assert rows[0].note == "control"
    assert rows[2].comparison == stats.paired([86.0, 86.11, 86.09], [85.0, 85.12, 85.07])
    assert rows[2].comparison.verdict == "better"
    assert rows[1].comparison.verdict == "too few seeds"


def test_only_common_seeds_are_compared():
    late = [make(seed, correct, label="late") for seed, correct in ((2, 8600), (1, 8590), (7, 1), (0, 8580))]
    row = groups_table.group_rows([*BASE, *late], "base")[1]
    assert row.comparison == stats.paired([85.8, 85.9, 86.0], [85.0, 85.12, 85.07])
    assert row.interval.n == 4


@pytest.mark.parametrize(
    ("other", "note"),
    [
        (make(9, label="x"), "not compared seed control"),
        (make(0, label="x", status="interrupted"), "not compared seed control"),
        (make(0, label="x", test="CIFAR-10.1"), "not compared test set control"),
        (make(0, 850, label="x", total=1000), "not compared test set control"),
    ],
)
def test_what_cannot_be_compared_says_why(other, note):
    text = groups_table.groups_markdown([*BASE, other], "base")
    assert re.search(in_order(note), columns(text)[1]["Against the control"])


def test_several_comparisons_are_corrected_by_holm():
    close = runs([8520, 8527, 8531], label="close")
    rows = groups_table.group_rows([*BASE, *GOOD, *close], "base")
    raw = [row.comparison.t_p for row in rows[1:]]
    assert [row.holm_p for row in rows[1:]] == pytest.approx(stats.holm(raw))
    cells = {
        row["Experiment"]: row["Against the control"]
        for row in columns(groups_table.groups_markdown([*BASE, *GOOD, *close], "base"))
    }
    assert re.search(r"^better .*; Holm p = 0\.000 over 2 comparisons$", cells["good"])
    assert "Holm" not in columns(groups_table.groups_markdown([*BASE, *GOOD], "base"))[1]["Against the control"]


def test_a_verdict_that_does_not_survive_holm_says_so():
    weak = [record for name in ("x", "y", "z") for record in runs([8525, 8527, 8533], label=name)]
    text = groups_table.groups_markdown([*BASE, *weak], "base")
    row = groups_table.group_rows([*BASE, *weak], "base")[1]
    assert row.comparison.t_p < 0.05 < row.holm_p
    assert re.search(in_order("3 comparisons not hold"), columns(text)[1]["Against the control"])


def test_audit_columns_are_means_and_need_every_record_of_a_group():
    audited = runs([8500, 8512, 8507], audited=True, label="base")
    (row,) = groups_table.group_rows(audited)
    assert row.audit == groups_table.AuditMeans(85.25, 84.5, pytest.approx(81.0), pytest.approx(85.0633333 + 0.3))
    cells = columns(groups_table.groups_markdown(audited))[0]
    assert (cells["Batch mean"], cells["Batch mean, truncated"], cells["Smoothed"]) == ("85.25", "84.50", "81.00")
    assert cells[BEST] == "85.36 (+0.30)"
    mixed = [*audited, *GOOD]
    assert [row.audit is None for row in groups_table.group_rows(mixed)] == [False, True], "each group by itself"
    assert [row["Smoothed"] for row in columns(groups_table.groups_markdown(mixed))] == ["81.00", "-"]
    assert "Smoothed" not in groups_table.groups_markdown([audited[0], make(1, 8512, label="base")])
    assert "validation" not in groups_table.groups_markdown(mixed)
    chosen = [
        r.model_copy(update={"counts": r.counts.model_copy(update={"best_val": r.counts.last})})
        for r in runs([8400, 8500])
    ]
    (cells,) = columns(groups_table.groups_markdown(chosen))
    assert cells["Best epoch on validation"] == "84.50 (+0.00)"


# Text


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds_give_no_interval_over_seeds(n):
    records = runs([8500, 8512][:n], label="few") + runs([8400, 8410][:n], label="base")
    cells = columns(groups_table.groups_markdown(records, "base"))[1]
    assert cells["Accuracy, %"].startswith("85.0")
    assert "(too few seeds" in cells["Accuracy, %"]
    assert cells["Against the control"].startswith("too few seeds (")
    assert not re.search(r"±|\+/-|t-interval", " ".join(cells.values()))
    low, high = stats.wilson(8500, 10000)
    assert (f"Wilson [{low:.2f}, {high:.2f}]" in cells["Accuracy, %"]) == (n == 1)


def test_markdown_in_full():
    text = groups_table.groups_markdown([*GOOD, *BASE], "base")
    low, high = groups_table.group_rows(BASE)[0].interval.low, groups_table.group_rows(BASE)[0].interval.high
    assert text.splitlines()[:3] == [
        "| Experiment | Trainable parameters | Seeds | Accuracy, % | Each seed | Against the control |",
        "|---|---:|---:|---:|---:|---:|",
        f"| base | 11,173,962 | 3 | 85.06 [{low:.2f}, {high:.2f}] | 0: 85.00, 1: 85.12, 2: 85.07 | control |",
    ]
    gap, below = text.splitlines()[4:]
    assert gap == ""
    told = "exact test last epoch 95 % t-interval CIFAR-10 (train), CIFAR-10 (test). Seeds: 0, 1, 2. Epochs: 30."
    assert re.fullmatch(f".*{in_order(told)}", below)


def test_an_interval_stays_within_0_and_100():
    cells = columns(groups_table.groups_markdown([*runs([9990, 10000, 9999], label="a"), *runs([0, 9, 1], label="b")]))
    assert cells[0]["Accuracy, %"].endswith(", 100.00]")
    assert "[0.00, " in cells[1]["Accuracy, %"]


def test_no_records_say_so():
    told = groups_table.groups_markdown([])
    assert re.fullmatch(f".*{in_order('no records')}.*\n", told)
    assert groups_table.groups_markdown([], "base") == told
    assert f"{groups_table.rich_table([]).title}\n" == told


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_makes_no_column_no_row_and_no_tag(name):
    records = [*runs([8500, 8501, 8502], label=name), make(0, label="x", test=name), *BASE]
    text = groups_table.groups_markdown(records, "base")
    assert len(columns(text)) == 3
    assert len(text.splitlines()) == 7
    assert "<" not in text
    assert "](" not in text
    assert groups_table.update_between_markers(groups_table.update_between_markers(PAGE, text), "x") == PAGE.replace(
        "old", "x"
    )


@given(st.text(max_size=30))
@settings(deadline=None, max_examples=60)
def test_any_label_keeps_the_table_whole(label):
    config = make().config | {"x": label, "label": label or "-"}
    hostile = [record.model_copy(update={"config": config}) for record in BASE]  # past the check for paths
    text = groups_table.groups_markdown([*hostile, *BASE])
    assert len(columns(text)) == 2
    assert text.encode().decode() == text
    assert not set("<\r\t\x1b") & set(text)


PAGE = "# Top\n\n<!-- results:begin -->\nold\n<!-- results:end -->\nrest\n"


def test_update_between_markers_replaces_and_is_idempotent():
    once = groups_table.update_between_markers(PAGE, "| a |\n")
    assert once == "# Top\n\n<!-- results:begin -->\n| a |\n<!-- results:end -->\nrest\n"
    assert groups_table.update_between_markers(once, "| a |\n") == once


def shown(table):
    console = Console(width=400, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
        return console.export_text()


def test_the_terminal_shows_the_cells_of_the_markdown_and_takes_no_markup():
    label = "[red]x[/red] \x1b[31m"
    records = [*BASE, *runs([8600, 8611, 8609], label=label)]
    text = shown(groups_table.rich_table(records, "base"))
    assert "[red]x[/red] [31m" in text
    assert "\x1b" not in text
    for cell in columns(groups_table.groups_markdown(records, "base"))[0].values():
        assert cell in text
    assert "Epochs: 30." in text


ROWS = [metrics_row(epoch=n, train_loss=2 / (n + 1), exact=40.0 + n, smoothed=30.0 + n) for n in range(12)]
CODE = """
import json, sys
from pathlib import Path
from perturblab.records.pictures import progress
from perturblab.report import groups_table
from perturblab.records.metrics import Row
from perturblab.records.record import Record
given = json.load(open(sys.argv[1]))
records = [Record.model_validate(value) for value in given["records"]]
Path(sys.argv[2] + ".md").write_text(groups_table.groups_markdown(records, "base"))
progress.progress_svg([Row(**row) for row in given["rows"]], Path(sys.argv[2] + ".svg"), "title")
sys.exit("torch" in sys.modules)
"""


def test_two_processes_write_the_same_bytes_and_never_import_torch(tmp_path):
    for name, order in (("1", 1), ("2", -1)):
        records = [json.loads(r.model_dump_json()) for r in [*BASE, *GOOD, make(5, label="z")][::order]]
        (tmp_path / name).write_text(json.dumps({"records": records, "rows": [row.values() for row in ROWS]}))
        environment = os.environ | {"PYTHONHASHSEED": name, "PYTHONPATH": SOURCES}
        command = [sys.executable, "-c", CODE, name, f"out{name}"]
        assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == 0
    for suffix in (".md", ".svg"):
        assert (tmp_path / f"out1{suffix}").read_bytes() == (tmp_path / f"out2{suffix}").read_bytes()
