"""`perturblab attack`: what it prints and keeps, and what it says of a mistake."""

import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from attack_runs import LITTLE, TEST, attack, by_key, decoded, kept, opened_in_pixels
from builders import Tell, Told
from perturblab.attacks import ATTACKS, Threat, deepfool, fgsm, still_right
from perturblab.cli import main
from perturblab.records.attack_names import WORST
from perturblab.records.pictures import examples
from perturblab.stats import wilson
from told import in_order

pytestmark = pytest.mark.usefixtures("undrawn", "short_autoattack")


# --- what is printed and kept ----------------------------------------------------------------------------------------


MANY = "fgsm,pgd,uniform,gaussian,universal,deepfool,square,fgsm-unclipped,fgsm-normalised"


@pytest.fixture(scope="module")
def wide(attack_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """The plain run under every attack but the slow one."""
    folder = tmp_path_factory.mktemp("wide") / "plain"
    shutil.copytree(attack_runs / "plain", folder)
    with pytest.MonkeyPatch.context() as patch:
        out, err = [], []
        patch.setattr("builtins.print", lambda *args, file=None, **_: (out if file is None else err).append(args[0]))
        patch.setattr(examples, "examples_svg", lambda *args, **given: None)
        code = main.main(shlex.split(f"attack {folder} {LITTLE} --attacks {MANY} --eps 0,8/255,0.2 --json"))
    return folder, Told(code, "\n".join(out), "\n".join(err))


def test_json_is_a_list_of_what_the_contract_names(wide: tuple[Path, Told]) -> None:
    points = wide[1].points
    for point in points:
        assert {"attack", "eps", "norm", "correct", "total", "wilson", "flags"} <= point.keys()
        assert isinstance(point["correct"], int)
        assert point["total"] == 30
        assert point["wilson"] == pytest.approx(list(wilson(point["correct"], 30)))
        assert isinstance(point["flags"], list)
    names = list(dict.fromkeys(p["attack"] for p in points))
    assert names == [*MANY.split(","), WORST]
    for name in names:
        wanted = [1, 2, 3, 4, 5] if name == "deepfool" else [0, 8 / 255, 0.2]
        assert [p["eps"] for p in points if p["attack"] == name] == wanted, name
        assert {p["norm"] for p in points if p["attack"] == name} == {"l2" if name == "deepfool" else "linf"}
    assert len({p["subset"] for p in points}) == 1


def test_every_point_that_was_measured_is_kept_under_the_name_of_its_attack(wide: tuple[Path, Told]) -> None:
    folder, told = wide
    for name in MANY.split(","):
        saved = [{k: v for k, v in p.items() if k != "answers"} for p in kept(folder, name)]
        printed = [p for p in told.points if p["attack"] == name]
        assert sorted(saved, key=lambda p: p["eps"]) == printed
    for path in (folder / "attacks").iterdir():
        text = path.read_text(encoding="utf-8")
        assert str(folder) not in text
        assert str(Path.home()) not in text, "no path of this machine"


def test_radius_0_leaves_every_answer_as_it_was(wide: tuple[Path, Told]) -> None:
    clean = [p for p in wide[1].points if p["eps"] == 0]
    assert len(clean) == 9
    assert len({p["correct"] for p in clean}) == 1
    assert {p["distance"] for p in clean} == {0}
    assert all(p["flags"] == [] for p in clean)


def test_the_worst_case_is_the_and_of_the_honest_attacks_image_by_image(wide: tuple[Path, Told]) -> None:
    folder, told = wide
    honest = ("fgsm", "pgd", "uniform", "gaussian", "universal", "square")
    for worst in (p for p in told.points if p["attack"] == WORST):
        right = [True] * 30
        for name in honest:
            for point in (p for p in kept(folder, name) if p["eps"] <= worst["eps"]):
                right = [a and b for a, b in zip(right, decoded(point), strict=True)]
        (clean,) = [p for p in kept(folder, "fgsm") if p["eps"] == 0]
        right = [a and b for a, b in zip(right, decoded(clean), strict=True)]
        assert worst["correct"] == sum(right)
        assert worst["settings"]["attacks"] == sorted(honest), "no published mistake, no curve by iterations"
    by_name = by_key(told.points)
    assert by_name[WORST, 0.2]["correct"] < by_name["fgsm-normalised", 0.2]["correct"]


def test_the_curves_name_every_attack_and_the_worst_case(wide: tuple[Path, Told]) -> None:
    svg = (wide[0] / "attacks" / "curves.svg").read_text()
    shown = {re.sub(r" \*$", "", text) for text in re.findall(r"<text[^>]*>([^<]+)</text>", svg)}
    assert {*MANY.split(","), WORST} <= shown
    assert any("batchout_mnist" in text for text in shown)


def test_answers_are_the_correctness_of_every_image_the_first_one_first(here: Path, tell: Tell) -> None:
    points = attack(tell, "plain", "--attacks fgsm,deepfool --eps 0,0.1 --iterations 2,4 --subset 600 --no-checks")
    model, x, y = opened_in_pixels(here / "plain")
    made = {
        ("fgsm", 0.0): x,
        ("fgsm", 0.1): fgsm(model, x, y, Threat("linf", 0.1)),
        **{("deepfool", n): deepfool(model, x, y, Threat("l2", math.inf), iterations=n) for n in (2, 4)},
    }
    saved = {(p["attack"], p["eps"]): p for p in [*kept(here / "plain", "fgsm"), *kept(here / "plain", "deepfool")]}
    assert saved.keys() == made.keys()
    for key, x_adv in made.items():
        right = still_right(model, x_adv, y)
        assert decoded(saved[key]) == right.tolist(), key
        assert saved[key]["correct"] == int(right.sum())
        assert saved[key]["total"] == TEST
        delta = (x_adv - x).flatten(1)
        size = delta.abs().amax(1) if key[0] == "fgsm" else delta.norm(dim=1)
        assert saved[key]["distance"] == pytest.approx(float(size.max()), rel=1e-5)
        if key[1]:
            assert saved[key]["median"] == pytest.approx(float(size[~right & (size > 0)].median()), rel=1e-5)
    assert [p["correct"] for p in points if p["attack"] == "deepfool"] == [
        saved["deepfool", 2]["correct"],
        saved["deepfool", 4]["correct"],
    ]


@pytest.mark.parametrize("run", ["plain", "three", "mixed"])
def test_radius_0_on_all_images_is_the_evaluation_exactly(here: Path, tell: Tell, run: str) -> None:
    exact = json.loads(tell(f"evaluate {run} --json").out)["exact"]
    names = "fgsm,pgd,square,uniform,universal,fgsm-unclipped,fgsm-normalised,autoattack"
    points = tell(f"attack {run} --attacks {names} --eps 0 --no-checks --nthreads 1 --json").points
    assert len(points) == 9
    for point in points:
        assert {"correct": point["correct"], "total": point["total"]} == exact, point["attack"]


def test_progress_goes_to_stderr_and_the_table_to_stdout(here: Path, tell: Tell) -> None:
    told = tell(f"attack plain {LITTLE} --eps 0,8/255,0.3")
    assert told.code == 0
    lines = told.out.splitlines()
    assert lines[0].split() == ["linf,", "eps", "0", "8/255", "0.3"]
    assert [line.split("  ")[0] for line in lines[1:6:2]] == ["fgsm", "pgd", f"**{WORST}**"]
    assert re.search(in_order("30 test images"), told.out)
    for line, name in ((1, "fgsm"), (3, "pgd"), (5, WORST.replace(" ", "-"))):
        counts = [p["correct"] for p in sorted(kept(here / "plain", name), key=lambda p: p["eps"])]
        assert [float(text.rstrip("*")) for text in lines[line].split()[-3:]] == [round(c / 0.3, 2) for c in counts]
        assert re.findall(r"\[[^]]*\]", lines[line + 1]) == ["[{:.1f}, {:.1f}]".format(*wilson(c, 30)) for c in counts]
    assert lines[-1] == "pictures: plain/attacks/curves.svg, examples.svg"
    for name in ("fgsm 0", "fgsm 8/255", "fgsm 0.3", "pgd 0", "pgd 8/255", "pgd 0.3"):
        assert re.search(rf"(?m)^{name}: \d+\.\d\d %", told.err), name
        assert not re.search(rf"(?m)^{name}:", told.out)
    assert re.search(in_order("masking 10 images"), told.err)
    quiet = tell(f"attack other {LITTLE} --quiet")
    assert (quiet.code, quiet.err) == (0, "")
    as_json = tell(f"attack three {LITTLE} --json")
    assert as_json.err == ""
    assert as_json.points


@pytest.mark.parametrize(("term", "bold"), [("xterm", True), ("dumb", False)])
def test_the_worst_case_is_bold_in_a_terminal(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch, term: str, bold: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", term)
    out = tell(f"attack plain {LITTLE} --attacks fgsm,uniform --eps 0.1 --no-checks").out
    assert (f"\x1b[1m{WORST} " in out) == bold
    assert (f"**{WORST}**" in out) != bold


def test_a_fraction_is_read_as_such_and_the_default_radii_are_those_of_grey_digits(here: Path, tell: Tell) -> None:
    points = attack(tell, "plain", "--attacks fgsm --eps ' 8/255, 0.5 ,1' --no-checks")
    assert [p["eps"] for p in points] == [8 / 255, 0.5, 1.0]
    assert [p["eps"] for p in attack(tell, "plain", "--attacks fgsm --no-checks")] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_nothing_but_the_attacks_changes_in_a_run(here: Path, tell: Tell) -> None:
    def look() -> dict[str, bytes]:
        files = (path for path in (here / "mixed").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files if "attacks" not in path.parts}

    before = look()
    attack(tell, "mixed", "--attacks fgsm,deepfool --batchout-in-eval --eps 0.1")
    assert look() == before
    assert before


def test_radii_are_those_of_the_norm(here: Path, tell: Tell) -> None:
    points = attack(tell, "plain", "--attacks pgd --norm l2 --no-checks")
    assert [p["eps"] for p in points] == [0, 0.5, 1, 1.5, 2, 3]
    assert points[-1]["correct"] == 0 < points[0]["correct"], "far enough for the net to fall"


# --- mistakes of the user --------------------------------------------------------------------------------------------


def test_weights_that_are_no_numbers_are_one_sentence_and_leave_no_point(here: Path, tell: Tell) -> None:
    path = here / "plain" / "weights.safetensors"
    spoilt = {name: value * torch.nan for name, value in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(spoilt, path)
    for flags in ("--attacks fgsm --eps 0.1", "--attacks pgd --eps 0.1 --norm l2", "--attacks square --eps 0.1"):
        told = tell(f"attack plain {LITTLE} {flags} --json")
        assert told.code == 2
        assert re.fullmatch(r"perturblab: error: logits.* finite.*\n", told.err), told.err
    assert not list((here / "plain").glob("attacks/*.json"))


def test_an_attack_that_leaves_the_ball_is_a_failed_check(here: Path, tell: Tell) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "fgsm", lambda m, x, y, t, e, g: (x + 2 * t.eps).clamp(0, 1))
        with pytest.raises(RuntimeError, match=in_order("fgsm ball bounds 30 30 images")):
            tell(f"attack plain {LITTLE} --attacks fgsm --eps 0.1")
    assert not list((here / "plain").glob("attacks/*.json"))
