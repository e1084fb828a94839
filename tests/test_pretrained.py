"""The layout of the hub: what goes out comes back bit for bit, and the card says what the record says."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch

import hub_server
from hub_server import TOKEN
from perturblab.cli import main
from perturblab.data import load as load_data
from perturblab.errors import UserError
from perturblab.records import store
from perturblab.records.markdown import escape
from perturblab.records.points import load_points
from perturblab.records.record import Record
from perturblab.runs.export.card import model_card
from perturblab.runs.export.hub import from_pretrained, push_to_hub, save_pretrained
from perturblab.runs.open import open_trained
from perturblab.system.terminal import Show
from told import in_order

ROOT = Path(__file__).parents[1]
RUN = "--dataset-train digits --net-type perturb_resnet18 --nfilters 4 --nmasks 2 --level 0.3 --mix-maps --no-augment"
SMALL = "--train-size 64 --batch-size 16 --nepochs 1 --nthreads 1 --quiet"


def trained(folder: Path, line: str) -> Path:
    assert main.main(["train", *shlex.split(f"{line} {SMALL}"), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run", RUN)


@pytest.fixture(scope="module")
def saved(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(run, tmp_path_factory.mktemp("saved") / "net")


@torch.no_grad()
def same_answers(run: Path, loaded: Any) -> None:
    original = open_trained(run, Show(quiet=True), {})
    images = original.images.test.images[:64]
    want = original.model(original.normalised(images))
    pixels = images.float() / 255
    # The run keeps its weights channels-last, which rounds otherwise; the very values are compared below.
    torch.testing.assert_close(loaded.net(original.normalised(images)), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loaded.in_pixels(pixels), want, rtol=1e-4, atol=1e-5)
    assert loaded.classes == original.images.classes
    assert not loaded.net.training
    state = original.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in loaded.net.state_dict().items())


def test_what_is_saved_comes_back(run: Path, saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    loaded = from_pretrained(saved)
    same_answers(run, loaded)
    config = json.loads((saved / "config.json").read_text())
    assert (config["model_type"], config["net"], config["image_size"]) == ("perturblab", "perturb_resnet18", [1, 8, 8])
    assert config["options"]["nmasks"] == 2
    weights = safetensors.torch.load_file(saved / "model.safetensors")
    assert any(name.endswith("masks.stored") for name in weights), "masks are state, and travel with the weights"
    assert all(torch.equal(value, loaded.net.state_dict()[name]) for name, value in weights.items())


def test_a_run_with_batchout_leaves_its_counters_at_home(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "--dataset-train digits --net-type lenet --nfilters 3 --defence batchout")
    assert any("batchout" in name for name in safetensors.torch.load_file(run / "weights.safetensors"))
    loaded = from_pretrained(save_pretrained(run, tmp_path / "net"))
    assert not any("batchout" in name for name in loaded.net.state_dict())
    same_answers(run, loaded)


def test_it_is_a_model_card_to_the_hub_s_own_library(run: Path, saved: Path) -> None:
    """The metadata are read by huggingface_hub, and carry the exact figure."""
    record = store.load_record(run / "record.json")
    card = huggingface_hub.ModelCard.load(saved / "README.md")
    (result,) = card.data.eval_results
    assert card.data.library_name == "perturblab"
    assert (result.metric_type, result.metric_value) == ("accuracy", record.counts.last.accuracy)
    assert result.dataset_name == "digits"
    last = record.counts.last
    assert re.search(in_order(f"{last.accuracy:.2f} % test digits ({last.correct} of {last.total}, "), card.text)
    assert "no interval" in card.text
    assert "Not attacked" in card.text
    assert json.loads(card.text.split("```json\n")[1].split("```")[0]) == record.config


def test_the_card_of_an_attacked_run_has_every_point_with_interval_and_flags() -> None:
    folder = ROOT / "results" / "robust" / "BO-mnist-fgsm-half" / "seed-1"
    record, points = store.load_record(folder / "record.json"), load_points(folder / "attacks" / "pgd.json")
    assert {bool(point.flags) for point in points} == {False, True}
    card = model_card(record, points)
    low, high = points[0].wilson
    assert f"| pgd | linf 0 | {points[0].correct:,} of {points[0].total:,} " in card
    assert f"| [{low:.2f}, {high:.2f}] |" in card
    rows = [line for line in card.splitlines() if line.startswith("| pgd ")]
    assert len(rows) == len(points)
    for row, point in zip(rows, points, strict=True):
        assert ("upper bound" in row) == bool(point.flags)
        assert all(escape(flag) in row for flag in point.flags)
    assert "never a guarantee" in card


def test_the_card_of_an_audited_run_tells_the_published_metrics() -> None:
    folder = ROOT / "results" / "robust" / "BO-mnist-batchout" / "seed-1"
    content = store.load_record(folder / "record.json").model_dump(mode="json")
    content["audit"]["last"] |= {"batch_mean": 94.286, "batch_mean_truncated": 93.865, "smoothed": 90.531}
    card = model_card(Record.model_validate(content))
    assert re.search(in_order("test set optimistic"), card)
    assert re.search(in_order("94.29 % 93.86 % (truncated) 90.53 %"), card)


def test_no_name_breaks_the_card() -> None:
    folder = ROOT / "results" / "robust" / "BO-mnist-batchout" / "seed-1"
    content = store.load_record(folder / "record.json").model_dump(mode="json")
    content["data"]["test"] = 'a\n---\n# b: "c" | <img src=x> `d`'
    card = model_card(Record.model_validate(content))
    assert huggingface_hub.ModelCard(card).data.eval_results[0].dataset_name == 'a --- # b: "c" | <img src=x> `d`'
    assert "\n# b:" not in card
    assert "&#60;img src=x&#62;" in card


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("config.json", None, "config.json ; save_pretrained"),
        ("config.json", "{", "config.json not configuration ; save"),
        ("config.json", '{"net": "lenet"}', "not configuration (options: required) ; save"),
        ("config.json", {"net": "nope"}, "config.json version ( 'nope' ; save"),
        ("config.json", {"options": {"nope": 1}}, "config.json version nope ; save"),
        ("config.json", {"options": {"nfilters": 5}}, "weights another net"),
        ("config.json", {"options": {"nfilters": 4}}, "weights another net ( expected )"),
        ("config.json", {"version": 2}, "not configuration (version: 1) ; save"),
        ("config.json", {"mean": [0.5] * 3}, "(mean 3 1 channel)"),
        ("config.json", {"mean": []}, "(mean 0 1 channel)"),
        ("config.json", {"std": [0.5] * 2}, "(std 2 1 channel)"),
        ("config.json", {"std": [0.0]}, "(std.0: greater"),
        ("config.json", {"std": [-1.0]}, "(std.0: greater"),
        ("config.json", {"std": [1e-300]}, "(std.0: greater"),
        ("config.json", {"mean": [1e300]}, "(mean.0: less"),
        ("config.json", {"image_size": [1, 0, 8]}, "(image_size.1: greater"),
        ("config.json", {"image_size": [1, 10**6, 10**6]}, "weights another net"),
        ("config.json", {"image_size": [1, 10**30, 8]}, "(image_size.1: less"),
        ("config.json", {"options": {"nfilters": 10**9}}, "version | another net"),
        ("config.json", {"options": {"nfilters": 10**30}}, "config.json version ( ) ; save"),
        ("config.json", {"options": {"nfilters": "4"}}, "(nfilters: integer"),
        ("config.json", {"options": {"nmasks": 10**9}}, "version | another net"),
        ("config.json", {"options": {"nmasks": 10**18}}, "config.json version ( ) ; save"),
        ("config.json", {"options": {"nmasks": 0}}, "(nmasks 0 ;"),
        ("config.json", {"options": {"mix_maps": "no"}}, "(mix_maps: boolean"),
        ("config.json", {"options": {"seed": 5}}, "config.json version seed ; save"),
        ("config.json", {"options": {"task": None}}, "config.json version task ; save"),
        ("config.json", {"net": "lbcnet", "options": {"depth": 10**9}}, f"(depth {10**9} tensors)"),
        ("config.json", {"net": "bottleneck_resnet", "options": {"blocks": 10**9}}, f"(blocks {10**9} tensors)"),
        ("model.safetensors", None, "no model.safetensors ; restore"),
        ("model.safetensors", "torn", "model.safetensors weights ; restore"),
    ],
)
def test_what_is_broken_is_told_in_one_line(name: str, content: Any, text: str, saved: Path, tmp_path: Path) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if isinstance(content, dict):
        content = json.dumps(json.loads((tmp_path / name).read_text()) | content)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="|".join(map(in_order, text.split(" | ")))) as caught:
        from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_masks_drawn_from_a_seed_take_no_more_than_memory_has(tmp_path: Path) -> None:
    """Their weights look the same whatever the image's size is."""
    saved = save_pretrained(trained(tmp_path / "run", f"{RUN} --mask-memory seed"), tmp_path / "net")
    from_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"image_size": [1, 10**6, 10**6]}))
    with pytest.raises(UserError, match=r"1000000x1000000 .*memory"):
        from_pretrained(saved)


def test_nothing_is_overwritten_and_nothing_unfinished_is_saved(run: Path, saved: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(UserError, match=f"{saved.name} exists"):
        save_pretrained(run, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    with pytest.raises(UserError, match="cannot be read"):
        save_pretrained(tmp_path, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_name_without_a_network_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^someone/net .*config.json"):
        from_pretrained("someone/net")


# --- pushed to a stand-in of the hub, by a process of its own, as a user would --------------------------------------


def user(hub_url: str, home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    return subprocess.run([sys.executable, *argv], env=env, check=False, capture_output=True, text=True, timeout=300)


SESSION = """
import contextlib, io, json, os, shlex, sys
from pathlib import Path
import torch
from perturblab.cli import main
from perturblab.errors import UserError
from perturblab.runs.export.hub import from_pretrained, push_to_hub

argv, folder, state, token = shlex.split(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), os.environ["HF_TOKEN"]
os.environ["HF_TOKEN"] = "wrong"
codes = [main.main(argv)]
(folder / "README.md").write_text("mine\\n")
os.environ["HF_TOKEN"] = token
with contextlib.redirect_stdout(io.StringIO()) as out:
    codes.append(main.main(argv))
url = out.getvalue().splitlines()[-1]
for revision in (None, url.rpartition("/")[2]):
    torch.save(from_pretrained("someone/net", revision=revision).net.state_dict(), state)
refused = []
for call in (
    lambda: push_to_hub(folder, "someone/net", token="wrong"),
    lambda: push_to_hub(folder, "some one/net"),
    lambda: from_pretrained("someone/other"),
    lambda: from_pretrained("someone/net", revision="nope"),
):
    try:
        call()
    except UserError as error:
        refused.append(str(error))
print(json.dumps({"codes": codes, "url": url, "refused": refused}))
"""


@pytest.fixture(scope="module")
def session(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One process of a user: a push with a wrong token, the same command with the right one, loads, and refusals."""
    home = tmp_path_factory.mktemp("home")
    line = f"export {run} --pretrained {home / 'net'} --push someone/net --private --quiet"
    with hub_server.running() as hub:
        done = user(hub.url, home, "-c", SESSION, line, str(home / "net"), str(home / "state"))
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        yield SimpleNamespace(hub=hub, errors=done.stderr, state=home / "state", **said)


def test_a_push_that_failed_is_made_by_the_same_command(session: SimpleNamespace, saved: Path) -> None:
    """It pushes the folder that was saved at the first try, with the card as its owner has left it."""
    assert session.codes == [2, 0]
    (refusal,) = [line for line in session.errors.splitlines() if line.startswith("perturblab: error: ")]
    assert "someone/net" in refusal
    hub, want = session.hub, {path.name: path.read_bytes() for path in saved.iterdir()} | {"README.md": b"mine\n"}
    assert hub.repos == {"someone/net": want}
    assert list(hub.large.values()) == [want["model.safetensors"]]
    assert hub.private == {"someone/net"}
    assert hub.messages == ["Net and model card"]
    assert session.url == f"{hub.url}/someone/net/commit/{hub.commit('someone/net')}"


def test_a_pushed_net_is_loaded_by_name_and_by_commit(session: SimpleNamespace, saved: Path) -> None:
    state, want = torch.load(session.state, weights_only=True), from_pretrained(saved).net.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[name], want[name]) for name in want)


def test_what_the_hub_refuses_is_told_in_one_line(session: SimpleNamespace) -> None:
    token, name, missing, revision = session.refused
    assert token.startswith("someone/net ")
    assert "401" in token
    assert name.startswith("some one/net ")
    assert [text.split(" ")[0] for text in (missing, revision)] == ["someone/other", "someone/net"]
    assert all("config.json" in text and "\n" not in text for text in (missing, revision))


def test_a_hub_out_of_reach_is_told_in_one_line(run: Path, tmp_path: Path) -> None:
    with hub_server.running() as gone:
        url = gone.url
    line = f"-m perturblab export {run} --pretrained {tmp_path / 'net'} --push someone/net --quiet"
    refused = user(url, tmp_path / "home", *shlex.split(line))
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("perturblab: error: someone/net ")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"other", None])
def test_another_net_is_neither_pushed_nor_overwritten(
    name: str, content: bytes | None, run: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main.main(["export", str(run), "--pretrained", str(tmp_path), "--push", "someone/net", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"perturblab: error: {tmp_path} exists")
    assert f"net of {run}" in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_only_a_complete_folder_is_pushed(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(UserError, match="holds no model"):
        push_to_hub(tmp_path, "someone/net")


def test_the_data_are_those_of_the_run() -> None:
    """The nets above were built for these images, else the comparison above would compare nothing."""
    assert load_data("digits").image_size == (1, 8, 8)
