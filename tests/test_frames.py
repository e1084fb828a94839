"""Records as a table: every number is that of the record, and one line suffices."""

import json
from pathlib import Path

import pandas
import pytest

from perturblab.errors import UserError
from perturblab.records import store
from perturblab.records.dataframe import frame
from perturblab.records.groups import group
from perturblab.stats import t_interval, wilson
from told import in_order

RESULTS = Path(__file__).parents[1] / "results" / "cifar10-jpeg"


def test_a_row_is_a_record() -> None:
    table = frame(RESULTS)
    found = {path.name: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    assert len(table) == len(found) == 9
    by_key = {(r["config"]["net_type"], r["config"].get("filter_size"), r["seed"]): r for r in found.values()}
    for _, row in table.iterrows():
        size = row["config.filter_size"]
        record = by_key[row["config.net_type"], None if pandas.isna(size) else size, row["seed"]]
        last = record["counts"]["last"]
        assert (row["counts.last.correct"], row["counts.last.total"]) == (last["correct"], last["total"])
        assert row["accuracy"] == 100 * last["correct"] / last["total"]
        assert (row["low"], row["high"]) == wilson(last["correct"], last["total"])
        assert row["parameters.trainable"] == record["parameters"]["trainable"]
        assert row["seconds"] == record["seconds"]
        assert row["environment.packages.torch"] == record["environment"]["packages"]["torch"]
        assert row["status"] == "finished"
    assert not any(name.startswith("masks") for name in table.columns)


def test_seeds_of_an_experiment_have_one_label() -> None:
    """The means are those of the table in the README."""
    means = frame(RESULTS).groupby("label").accuracy.mean().round(2).to_dict()
    assert means == {
        "perturb_resnet18, 16 filters, 1x1 only": 52.27,
        "perturb_resnet18, 16 filters, noise": 53.67,
        "resnet18, 6 filters": 62.59,
    }
    for found in group(store.load_all(RESULTS)):
        values = [record.counts.last.accuracy for record in found.records]
        assert means[found.label] == round(t_interval(values).mean, 2)


def test_a_folder_without_records_gives_an_empty_table(tmp_path: Path) -> None:
    assert frame(tmp_path).empty
    with pytest.raises(UserError, match=in_order("nope folder records ; give")):
        frame(tmp_path / "nope")
