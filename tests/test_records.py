"""Records: what is written is what is read, and nothing else gets in."""

import copy
import getpass
import json
import os
import platform
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from builders import FULL
from perturblab.errors import UserError
from perturblab.records import environment, store
from perturblab.records.record import Record
from told import in_order


def changed(*changes):
    """FULL with values set at dotted keys; the value ``...`` deletes the key."""
    value = copy.deepcopy(FULL)
    for key, new in changes:
        *parents, last = key.split(".")
        place = value
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        if new is ...:
            del place[last]
        else:
            place[last] = new
    return value


def written(folder, value, name="record.json"):
    path = folder / "run-1" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_round_trip_keeps_every_field_and_every_byte(tmp_path):
    path = tmp_path / "a" / "record.json"
    store.save_record(Record.model_validate(FULL), path)
    first = path.read_bytes()
    assert json.loads(first) == FULL
    store.save_record(store.load_record(path), path)
    assert path.read_bytes() == first
    assert first.startswith(b'{\n "audit"')
    assert first.endswith(b"}\n")


@given(
    st.dictionaries(
        st.text("abcdé|<_", min_size=1),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text("ab\n|<é"),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
        ),
        max_size=4,
    ),
    st.integers(0, 2**63 - 1),
)
@settings(deadline=None)
def test_any_config_survives(tmp_path_factory, config, seed):
    path = tmp_path_factory.mktemp("any") / "record.json"
    record = Record.model_validate(FULL | {"config": config, "seed": seed})
    store.save_record(record, path)
    assert store.load_record(path) == record


def test_optional_parts_may_be_missing(tmp_path):
    value = changed(("audit", ...), ("masks", ...), ("counts.best_val", None), ("counts.best_test", ...))
    record = store.load_record(written(tmp_path, value))
    assert (record.audit, record.masks, record.counts.best_val, record.counts.best_test) == (None, [], None, None)


def test_accuracy_is_the_exact_count_in_percent():
    assert Record.model_validate(FULL).counts.last.accuracy == 85.12


def test_records_are_frozen():
    record = Record.model_validate(FULL)
    with pytest.raises(ValidationError, match=r"frozen"):
        record.seed = 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("version", 2), "version 2 1 ;"),
        (("version", True), "version: True"),
        (("version", "1"), "version: '1' integer ; repair"),
        (("seed", ...), "seed: required ; repair"),
        (("seed", 1.5), "seed: 1.5"),
        (("notes", "x"), "notes: 'x'"),
        (("counts.last.epochs", 1), "counts.last.epochs: 1"),
        (("counts.last.correct", 10001), "correct 10001 total = 10000"),
        (("counts.last.correct", -1), "counts.last.correct: -1"),
        (("counts.last.total", 0), "counts.last.total: 0"),
        (("counts.last.epoch", -1), "counts.last.epoch: -1"),
        (("counts.best_val.total", 9999), "best_val.total 9999 last.total = 10000"),
        (("counts.best_test.epoch", 30), "best_test.epoch 30 last.epoch = 29"),
        (("counts.best_test.correct", 8511), "best_test.correct 8511 last.correct 8512"),
        (("counts.best_test.selection", "validation"), "counts.best_test.selection: 'validation'"),
        (("counts.best_test.published_rule.epoch", 10), "published_rule.epoch: 10"),
        (("counts.best_test.published_rule.rule", "best"), "published_rule.rule: 'best'"),
        (("audit.last.smoothed", "85"), "audit.last.smoothed: '85'"),
        (("audit.best_exact", ...), "audit.best_exact: required ; repair"),
        (("environment.threads", 0), "environment.threads: 0"),
        (("environment.processor.cores", 0), "environment.processor.cores: 0"),
        (("data.sizes.test", -1), "data.sizes.test: -1"),
        (("parameters.trainable", 0.5), "parameters.trainable: 0.5"),
        (("masks", [{"layer": "a", "shape": [1], "png": "%%"}]), "masks.0.png: ; repair"),
        (("masks", [{"layer": "a", "shape": [1], "png": "AAAA"}]), "masks.0.png: PNG"),
        (("seconds", -1), "seconds: -1"),
        (("status", "failed"), "status: 'failed' 'finished' 'interrupted' ; repair"),
        (("bad\nkey", 1), "bad key: 1"),
        (("config", "x" * 500), "config: '"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(tmp_path, change, text):
    with pytest.raises(UserError) as caught:
        store.load_record(written(tmp_path, changed(change)))
    message = str(caught.value)
    assert message.startswith("run-1/record.json: ")
    assert re.search(in_order(text), message)
    assert "\n" not in message
    assert len(message) < 400
    assert str(tmp_path) not in message


def test_a_record_without_a_version_is_of_the_first(tmp_path):
    assert store.load_record(written(tmp_path, changed(("version", ...)))).version == 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "JSON (Expecting"),
        ("", "JSON (char 0)) record ; repair"),
        ('{"seconds": NaN}', "JSON (NaN"),
        ("[" * 100_000, "JSON (maximum recursion"),
        ("9" * 5000, "JSON (Exceeds"),
        (b"\xff\xfe\x00", "utf-8"),
        ("[]", "record: []"),
        ("null", "record: None"),
        ('"K4"', "record: 'K4'"),
        ("{}", "config: required ; repair"),
        ('{"version": 1}', "config: required ; repair"),
        ('{"version": 9}', "version 9"),
    ],
)
def test_what_is_called_a_record_and_is_none_is_refused(tmp_path, content, text):
    """Also in a folder beside a record, where nobody would miss it."""
    path = written(tmp_path, "")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    store.save_record(Record.model_validate(FULL), tmp_path / "run-0" / "record.json")
    for load, where in ((store.load_record, path), (store.load_all, tmp_path)):
        with pytest.raises(UserError) as caught:
            load(where)
        assert str(caught.value).startswith("run-1/record.json")
        assert re.search(in_order(text), str(caught.value))
        assert "\n" not in str(caught.value)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json .*No such file"):
        store.load_record(tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"gone .*give the folder"):
        store.load_all(tmp_path / "gone")


PRIVATE = ["/data/cifar", "~/data", "~", "/", "--out=/scratch/run", "at /mnt/disk now", "C:\\Users\\x", "file:/home/x"]


@pytest.mark.parametrize("value", PRIVATE)
@pytest.mark.parametrize("place", ["config.path", "data.train", "environment.device", "environment.processor.model"])
def test_no_path_of_the_machine_gets_in(place, value):
    with pytest.raises(ValidationError, match=rf"{place} is .* no path"):
        Record.model_validate(changed((place, value)))


def test_no_path_hides_deep_in_the_config_or_in_a_key_or_in_a_layer_name():
    deep = changed(("config.a", [{"b": ["fine", "/data/x"]}]))
    with pytest.raises(ValidationError, match=r"config.a.0.b.1 is '/data/x'"):
        Record.model_validate(deep)
    for value in (changed(("config", {"/data/x": 1})), changed(("masks.0.layer", "/data/x"))):
        with pytest.raises(ValidationError, match=r"/data/x.* no path"):
            Record.model_validate(value)


def test_the_home_folder_does_not_get_in(monkeypatch):
    monkeypatch.setenv("HOME", "/u")
    with pytest.raises(ValidationError, match=r"see:/u.* no path"):
        Record.model_validate(changed(("config.note", "see:/u")))
    Record.model_validate(changed(("config.note", "either/upper")))  # not the folder, only its letters


@pytest.mark.parametrize(
    "fine", ["1/255", "results/a/b", "a / b", "https://example.org/x", "../shared/data", "cat/dog", "a~b"]
)
def test_what_only_looks_like_a_path_is_kept(fine):
    assert Record.model_validate(changed(("config.note", fine))).config["note"] == fine


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_are_finite(bad):
    with pytest.raises(ValidationError, match=r"config.lr is (nan|inf), .*finite"):
        Record.model_validate(changed(("config.lr", bad)))
    with pytest.raises(ValidationError, match=r"finite"):
        Record.model_validate(changed(("seconds", bad)))


def test_load_all_takes_records_only_sorted_by_path(tmp_path):
    for name, seed in (("b/record.json", 1), ("a/deep/record.json", 2), ("a-seed3.json", 3)):
        store.save_record(Record.model_validate(FULL | {"seed": seed}), tmp_path / name)
    (tmp_path / "b" / "attacks").mkdir()
    (tmp_path / "b" / "attacks" / "fgsm.json").write_text('[{"attack": "fgsm"}]')
    (tmp_path / "other.json").write_text('{"version": 1}')
    (tmp_path / "folder.json").mkdir()
    assert [record.seed for record in store.load_all(tmp_path)] == [2, 3, 1]
    assert store.load_all(tmp_path / "b" / "attacks") == []


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    path.write_text("old")

    def crash(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(UserError, match=r"record\.json .*No space left.*writable"):
        store.save_record(Record.model_validate(FULL), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_folder_in_the_way_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/record\.json .*written"):
        store.save_record(Record.model_validate(FULL), tmp_path / "file" / "record.json")


def test_environment_is_valid_and_says_nothing_of_host_or_user():
    env = environment.environment(threads=2, precision="fp32", compile="off", device="cpu")
    record = Record.model_validate(FULL | {"environment": env.model_dump()})
    text = record.environment.model_dump_json()
    words = set(text.replace('"', " ").split())
    assert record.environment.python == platform.python_version()
    assert not {platform.node(), getpass.getuser()} & words
    assert env.packages["pydantic"]
    assert "numpy" in env.packages


def test_packages_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package-here"))
    assert list(environment.packages()) == ["numpy"]


X86 = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512f amx_bf16\n\nprocessor\t: 1\nmodel name\t: B\n"


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [
        (X86, "A CPU", ["avx2", "avx512f", "amx_bf16"]),
        ("processor\t: 0\nFeatures\t: fp asimd evtstrm\n", None, ["asimd"]),
        ("", None, []),
        (None, None, []),
    ],
)
def test_processor(tmp_path, text, model, features):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    got = environment.processor(path)
    assert got.model == (model or platform.processor() or platform.machine() or "unknown")
    assert (got.features, got.cores) == (features, os.cpu_count())
