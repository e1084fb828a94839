"""Training, evaluating, reporting and resuming by the command line: what goes where, and what is kept."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from builders import LENET, ONE_EPOCH, Tell, content
from perturblab import data
from perturblab.data import ImageData, Split
from perturblab.layers.kernels import debug_log
from perturblab.records import store
from told import in_order

# --- train -----------------------------------------------------------------------------------------------------------


def test_train_tells_progress_on_stderr_and_the_result_on_stdout(tell: Tell) -> None:
    told = tell(f"train {LENET} --nepochs 2 --out run")
    last = store.load_record(Path("run/record.json")).counts.last
    assert told.code == 0
    result = in_order(f"test accuracy epoch 2 {last.accuracy:.2f} % ({last.correct}/{last.total}, 95 % Wilson [")
    assert re.match(result, told.out.splitlines()[0])
    assert told.out.splitlines()[1:] == ["record: run/record.json, curves: run/progress.svg"]
    said = told.err.splitlines()
    settings = (
        "data: digits 20 training 0 validation 597 test",
        "classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        "net: lenet 1,958 trainable cpu",
        "run: run",
        f"fp32 not compiled {torch.get_num_threads()} thread cpu",
    )
    for line, tokens in zip(said[:5], settings, strict=True):
        assert re.search(in_order(tokens), line), line
    assert [line.split()[1] for line in said[5:]] == ["1/2", "2/2"]


def test_audited_run_tells_the_published_metrics(tell: Tell) -> None:
    told = tell(f"train {ONE_EPOCH} --audit --out run")
    audit = store.load_record(Path("run/record.json")).audit
    assert audit is not None
    metrics = told.out.splitlines()[1]
    for value in (audit.last.batch_mean, audit.last.batch_mean_truncated, audit.last.smoothed):
        assert f"{value:.2f} %" in metrics


def test_quiet_leaves_the_result_alone(tell: Tell) -> None:
    loud, quiet = (tell(f"train {ONE_EPOCH} --out {out} {flag}") for out, flag in (("one", ""), ("two", "--quiet")))
    assert quiet.err == ""
    assert quiet.out == loud.out.replace("one/", "two/")


def test_nothing_off_a_terminal_but_plain_lines(tell: Tell) -> None:
    for line in (f"train {ONE_EPOCH} --audit --val-size 10 --out run", "evaluate run --audit", "report run", "models"):
        told = tell(line)
        assert told.code == 0
        odd = {char for char in told.out + told.err if not char.isprintable() and char != "\n"}
        assert not odd, line


def test_default_folder_names_net_and_seed(tell: Tell, tmp_path: Path) -> None:
    told = tell(f"train {ONE_EPOCH} --seed 5")
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"lenet-seed5-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert f"run: runs/{folder.name}\n" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_out_makes_the_folders_above_it_and_takes_an_empty_one(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in ("a/b/c", "empty", "./d/", str(tmp_path / "absolute"), "ünïcödé and spaces", ":cat:"):
        assert tell(f"train {ONE_EPOCH} --quiet --out {shlex.quote(out)}").code == 0
        assert store.load_record(tmp_path / out / "record.json").status == "finished"


def test_save_and_logs_are_accepted_and_point_into_the_run(tell: Tell, tmp_path: Path) -> None:
    assert tell(f"train {ONE_EPOCH} --quiet --save saved --logs {tmp_path}/logged --out run").code == 0
    assert tell(f"train {ONE_EPOCH} --quiet --out plain").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "run"]
    assert content(tmp_path / "run").keys() == content(tmp_path / "plain").keys()


def test_names_are_printed_as_they_are(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that looks like markup or an emoji is turned into something else."""
    fake_data(monkeypatch, channels=1, classes=("[red]x[/red]", ":cat:"))
    told = tell(f"train {ONE_EPOCH} --train-size 12 --batch-size 6 --out :smile:")
    assert told.code == 0
    assert re.search(in_order("classes [red]x[/red], :cat:"), told.err)
    assert "run: :smile:\n" in told.err


def fake_data(
    monkeypatch: pytest.MonkeyPatch, *, channels: int, classes: tuple[str, ...] = tuple("0123456789"), size: int = 8
) -> None:
    """Random images in place of a data set."""

    def split(count: int) -> Split:
        generator = torch.Generator().manual_seed(count)
        pixels = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
        return Split(pixels, torch.arange(count) % len(classes))

    made_up = ImageData("", "made up", classes, split(40), split(20), {"train": "a", "test": "b"})
    monkeypatch.setattr(data, "load", lambda *_, **__: made_up)


# --- debug -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """The log that --debug opens, closed again."""
    yield
    for handler in [*debug_log.handlers]:
        debug_log.removeHandler(handler)
    debug_log.setLevel("NOTSET")


SHOWN = re.compile(r"^(input|mask|output) \(([\d, ]+)\) \[(\d+), (\d+)\] \[(-?[\d.e-]+), (-?[\d.e-]+)\]$", re.M)


@pytest.mark.usefixtures("quiet_log")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("nmasks", [1, 2])
@pytest.mark.parametrize("unique", ["--unique_masks", "--no-unique_masks"])
def test_debug_prints_input_mask_and_output(
    nmasks: int, channels: int, unique: str, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_data(monkeypatch, channels=channels)
    told = tell(f"train {ONE_EPOCH} --nfilters 6 --nmasks {nmasks} {unique} --debug --quiet --out run")
    assert told.code == 0
    assert len(told.out.splitlines()) == 2
    shown = SHOWN.findall(told.err)
    assert len(shown) == len(told.err.splitlines())
    # The first layer has no activation, so that its output is the sum of the two others.
    size, sets = (10, channels, 8, 8), channels if unique == "--unique_masks" else 1
    shapes = {"input": size, "mask": (sets, nmasks, 8, 8), "output": (10, channels * nmasks, 8, 8)}
    values: dict[tuple[str, int, int], list[float]] = {}
    for name, shape, i, j, *pair in shown:
        if tuple(map(int, shape.split(","))) == shapes[name] and (name, int(i), int(j)) not in values:
            values[name, int(i), int(j)] = [float(value) for value in pair]
    sums = 0
    for (name, image, map_), got in values.items():
        channel, mask = divmod(map_, nmasks)
        if name == "output" and channel < 2:
            added = values["mask", channel if sets > 1 else 0, mask]
            want = [x + m for x, m in zip(values["input", image, channel], added, strict=True)]
            assert got == pytest.approx(want, abs=3e-5)
            sums += 1
    maps = {0, 1, nmasks} & set(range(channels * nmasks))  # two masks of a channel, one of the next
    assert sums == 2 * len(maps)


@pytest.mark.usefixtures("quiet_log")
def test_debug_changes_nothing(tell: Tell, tmp_path: Path) -> None:
    for flags in ("--out plain", "--debug --out debug"):
        assert tell(f"train {ONE_EPOCH} --quiet {flags}").code == 0
    plain, debug = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("plain", "debug"))
    assert plain == debug


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_as_json_has_the_keys_of_the_contract(run: Path, tell: Tell) -> None:
    before = content(run)
    told = tell(f"evaluate {run} --json")
    assert (told.code, told.err) == (0, "")
    plain = json.loads(told.out)
    assert list(plain) == ["exact", "wilson"]
    audited = json.loads(tell(f"evaluate {run} --audit --json").out)
    assert list(audited) == ["exact", "wilson", "batch_mean", "batch_mean_truncated", "smoothed", "n_batches"]
    last = store.load_record(run / "record.json").counts.last
    assert plain["exact"] == audited["exact"] == {"correct": last.correct, "total": last.total}
    assert json.loads(tell(f"evaluate {run} --audit --batch-size 100 --json").out)["n_batches"] == 6
    low, high = plain["wilson"]
    assert 0 <= low < 100 * last.correct / last.total < high <= 100
    assert content(run) == before


def test_evaluate_in_words(run: Path, tell: Tell) -> None:
    found = json.loads(tell(f"evaluate {run} --audit --json").out)
    told = tell(f"evaluate {run} --audit")
    assert told.code == 0
    lines = told.out.splitlines()
    assert len(lines) == 4
    exact = found["exact"]
    assert lines[0].startswith(f"exact: {100 * exact['correct'] / exact['total']:.2f} % ({exact['correct']}/597), 95 %")
    for line, name in zip(lines[1:], ("batch_mean", "batch_mean_truncated", "smoothed"), strict=True):
        assert f"{found[name]:.2f} %" in line
    assert tell(f"evaluate {run}").out == lines[0] + "\n"


# --- report ----------------------------------------------------------------------------------------------------------


def test_report(run: Path, tell: Tell) -> None:
    before = content(run)
    last = store.load_record(run / "record.json").counts.last
    for flags in ("--groups", "--groups --markdown"):
        told = tell(f"report {run.parent} {flags}")
        assert (told.code, told.err) == (0, "")
        assert f"{last.accuracy:.2f}" in told.out
    assert content(run) == before


def test_report_of_groups_between_markers(run: Path, tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    assert tell(f"report {run} --groups --into README.md").code == 0
    text = (tmp_path / "README.md").read_text()
    assert re.fullmatch(
        r"before\n<!-- results:begin -->\n.*lenet, 2 filters.*<!-- results:end -->\nafter\n", text, re.S
    )
    assert "old" not in text


def test_report_compares_with_a_control(tell: Tell) -> None:
    for seed in (1, 2):
        for level in (0, 1):
            out = f"results/level{level}-seed{seed}"
            assert tell(f"train {ONE_EPOCH} --quiet --level {level} --seed {seed} --out {out}").code == 0
    labels = re.findall(r"^\| (lenet[^|]*?) \|", tell("report --groups --markdown").out, re.M)
    assert len(labels) == 2
    for control in labels:
        told = tell(f"report --groups --control {shlex.quote(control)} --markdown")
        assert (told.code, told.err) == (0, "")
        rows = [line for line in told.out.splitlines() if line.startswith("| lenet")]
        assert rows[0].startswith(f"| {control}")


def test_report_without_records_says_so(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for flags in ("--groups", "--markdown"):
        told = tell(f"report {flags}")
        assert (told.code, told.err) == (0, "")
        assert re.fullmatch(".*" + in_order("no records") + ".*", told.out.strip())
    told = tell("report")
    assert (told.code, told.err) == (0, "")
    assert re.search(in_order("0 records report.html"), told.out)
    assert re.search(in_order("no records"), (tmp_path / "report.html").read_text())


# --- resume ----------------------------------------------------------------------------------------------------------


def test_resumed_run_is_the_straight_one(tell: Tell, tmp_path: Path) -> None:
    assert tell(f"train {LENET} --nepochs 3 --quiet --out straight").code == 0
    assert tell(f"train {LENET} --nepochs 1 --quiet --out longer").code == 0
    told = tell("train --resume longer --nepochs 3")
    assert told.code == 0
    assert re.search(in_order("test accuracy epoch 3"), told.out)
    assert [line.split()[1] for line in told.err.splitlines() if line.startswith("epoch")] == ["2/3", "3/3"]
    one, two = (tmp_path / name for name in ("straight", "longer"))
    assert (one / "weights.safetensors").read_bytes() == (two / "weights.safetensors").read_bytes()
    records_ = [store.load_record(folder / "record.json").model_dump(exclude={"seconds"}) for folder in (one, two)]
    straight, longer = (record.pop("parts") for record in records_)
    assert records_[0] == records_[1]
    assert straight == []
    assert [(part["epoch"], part["nepochs"]) for part in longer] == [(0, 1), (1, 3)], "that it was made longer is told"


def test_what_was_given_before_may_be_said_again(tell: Tell) -> None:
    assert tell(f"train {ONE_EPOCH} --optimizer-schedule cosine --quiet --out cosine").code == 0
    assert tell("train --resume cosine --nepochs 1 --quiet").code == 0, "though the schedule depends on it"
    assert tell(f"train {ONE_EPOCH} --quiet --out run").code == 0
    assert tell(f"train {ONE_EPOCH} --quiet --resume run").code == 0
    assert tell(f"train {LENET} --nepochs 2 --quiet --resume run").code == 0


def test_run_moved_elsewhere_is_resumed_from_elsewhere(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tell(f"train {ONE_EPOCH} --quiet --out run").code == 0
    (tmp_path / "below").mkdir()
    (tmp_path / "run").rename(tmp_path / "below/moved")
    monkeypatch.chdir(tmp_path / "below")
    assert tell("train --resume moved --nepochs 2 --quiet").code == 0
    assert tell("evaluate moved").code == 0
