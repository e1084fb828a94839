"""`perturblab attack`: what it prints and keeps, what it never measures twice or mixes, which nets it distrusts."""

import json
import math
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from perturblab import attacked, cli, files, masking, robustness_figures, runs, unfinished
from perturblab.attacks import ATTACKS, PixelModel, Threat, autoattack, deepfool, fgsm, pgd, still_right, to_pixels
from perturblab.points import WORST
from perturblab.progress import Show
from perturblab.seeding import stream
from perturblab.stats import wilson

NET = "train --dataset-train digits --net-type batchout_mnist --nfilters 8 --dropout 0 --optim-method Adam --nthreads 1"
LEARN = "--learning-rate 5e-3 --batch-size 64 --nepochs 10 --quiet"
LITTLE = "--subset 30 --steps 3 --restarts 1 --queries 15 --check-subset 10 --draws 2 --verdicts 3 --nthreads 1"
TEST = 597  # test images of the digits


@dataclass(frozen=True)
class Told:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def points(self) -> list[dict[str, Any]]:
        """Standard output as nothing but JSON."""
        assert self.code == 0, self.err
        found: list[dict[str, Any]] = json.loads(self.out)
        return found


Tell = Callable[[str], Told]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Run a command line, without its pictures, which take longer than all the rest."""
    for picture in ("curves_svg", "examples_svg"):
        monkeypatch.setattr(robustness_figures, picture, lambda *args, **given: None)

    def run(line: str) -> Told:
        return Told(cli.main(shlex.split(line)), *capsys.readouterr())

    return run


@pytest.fixture
def draw(capsys: pytest.CaptureFixture[str]) -> Tell:
    """The same, with its pictures."""

    def run(line: str) -> Told:
        return Told(cli.main(shlex.split(line)), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small runs; no test changes them."""
    root = tmp_path_factory.mktemp("runs")
    short = "--nepochs 1 --train-size 64 --learning-rate 5e-3 --batch-size 32 --quiet"
    random = "--net-type perturb_resnet18 --nfilters 2 --redraw-masks always --optim-method Adam --nthreads 1"
    mixing = "--defence batchout --batchout-eta 0.4 --batchout-k 1.0"
    for line in (
        f"{NET} {LEARN} --out plain",
        f"{NET} {LEARN} --manual-seed 2 --out other",
        f"{NET} {LEARN} --classes 0,1,2 --normalise --out three",
        f"{NET} {LEARN} {mixing} --out mixed",
        f"{NET} {short} --defence batchout --batchout-partners different-class --out guarded",
        f"train --dataset-train digits {random} {short} --out random",
    ):
        assert cli.main(shlex.split(line.replace("--out ", f"--out {root}/"))) == 0
    return root


@pytest.fixture
def here(trained_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a copy of every run."""
    shutil.copytree(trained_runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attack(tell: Tell, run: str, flags: str = "", *, little: str = LITTLE) -> list[dict[str, Any]]:
    return tell(f"attack {run} {little} --json {flags}").points


def kept(folder: Path, name: str = "pgd") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "attacks" / f"{name}.json").read_text())["points"]
    return found


def decoded(point: dict[str, Any]) -> list[bool]:
    """The answers image by image, the first one first."""
    bits = f"{int(point['answers'], 16):0{point['total']}b}"
    assert len(point["answers"]) == math.ceil(point["total"] / 4)
    return [bit == "1" for bit in bits]


def by_key(points: list[dict[str, Any]]) -> dict[tuple[str, float], dict[str, Any]]:
    found = {(p["attack"], p["eps"]): {k: v for k, v in p.items() if k != "seconds"} for p in points}
    assert len(found) == len(points)
    return found


def opened(folder: Path) -> tuple[PixelModel, Tensor, Tensor]:
    """A run's net in pixels and its test images, opened as a user of the library would."""
    run, _ = runs.trained_run(folder, Show(quiet=True), {})
    test = run.images.test
    return run.in_pixels.eval(), to_pixels(test.images), test.labels


@contextmanager
def counted() -> Iterator[list[tuple[str, float, int]]]:
    """Which attack is made at which radius on how many images; five images are those of the picture."""
    made: list[tuple[str, float, int]] = []

    def counting(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def spy(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *rest: Any) -> Tensor:
            made.append((name, threat.eps, len(x)))
            return run(model, x, y, threat, *rest)

        return spy

    with pytest.MonkeyPatch.context() as patch:
        for name, known in list(ATTACKS.items()):
            patch.setitem(ATTACKS, name, replace(known, run=counting(name, known.run)))
        yield made


def measured(made: list[tuple[str, float, int]]) -> list[tuple[str, float]]:
    return [(name, eps) for name, eps, images in made if images != 5]


# --- what is printed and kept ---------------------------------------------------------------------------------------

MANY = "fgsm,pgd,uniform,gaussian,universal,deepfool,square,fgsm-unclipped,fgsm-normalised"


@pytest.fixture(scope="module")
def wide(trained_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """The plain run under every attack but the slow one."""
    folder = tmp_path_factory.mktemp("wide") / "plain"
    shutil.copytree(trained_runs / "plain", folder)
    with pytest.MonkeyPatch.context() as patch:
        out, err = [], []
        patch.setattr("builtins.print", lambda *args, file=None, **_: (out if file is None else err).append(args[0]))
        patch.setattr(robustness_figures, "examples_svg", lambda *args, **given: None)
        code = cli.main(shlex.split(f"attack {folder} {LITTLE} --attacks {MANY} --eps 0,8/255,0.2 --json"))
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
    model, x, y = opened(here / "plain")
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
    assert "of 30 test images" in told.out
    for line, name in ((1, "fgsm"), (3, "pgd"), (5, WORST.replace(" ", "-"))):
        counts = [p["correct"] for p in sorted(kept(here / "plain", name), key=lambda p: p["eps"])]
        assert [float(text.rstrip("*")) for text in lines[line].split()[-3:]] == [round(c / 0.3, 2) for c in counts]
        assert re.findall(r"\[[^]]*\]", lines[line + 1]) == ["[{:.1f}, {:.1f}]".format(*wilson(c, 30)) for c in counts]
    assert lines[-1] == "pictures: plain/attacks/curves.svg, examples.svg"
    for name in ("fgsm 0", "fgsm 8/255", "fgsm 0.3", "pgd 0", "pgd 8/255", "pgd 0.3"):
        assert re.search(rf"(?m)^{name}: \d+\.\d\d %", told.err), name
        assert not re.search(rf"(?m)^{name}:", told.out)
    assert re.search(r"(?m)^masking checks on 10 images at ", told.err)
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


# --- never twice, never mixed ---------------------------------------------------------------------------------------


def test_a_second_call_measures_nothing_and_says_the_same(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = "--attacks fgsm,pgd,deepfool --eps 0,0.1"
    with counted() as made:
        first = attack(tell, "plain", flags)
    assert measured(made) == [("fgsm", 0.0), ("fgsm", 0.1), ("pgd", 0.0), ("pgd", 0.1)]
    files = {path.name: path.read_bytes() for path in (here / "plain" / "attacks").iterdir()}
    monkeypatch.setattr(masking, "examine", None)  # a call would fail
    monkeypatch.setattr(attacked, "deepfool_path", None)
    with counted() as made:
        assert attack(tell, "plain", flags) == first
    assert measured(made) == []
    assert {path.name: path.read_bytes() for path in (here / "plain" / "attacks").iterdir()} == files


def test_only_what_is_missing_is_measured(here: Path, tell: Tell) -> None:
    attack(tell, "plain", "--attacks fgsm --eps 0,0.1")
    with counted() as made:
        points = attack(tell, "plain", "--attacks fgsm,uniform --eps 0,0.1,0.2")
    assert measured(made) == [("fgsm", 0.2), ("uniform", 0.0), ("uniform", 0.1), ("uniform", 0.2)]
    assert [(p["attack"], p["eps"]) for p in points][:3] == [("fgsm", 0.0), ("fgsm", 0.1), ("fgsm", 0.2)]


def test_a_call_that_was_interrupted_keeps_every_point_and_goes_on(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,pgd --eps 0,0.1,0.2"
    straight = by_key(attack(tell, "plain", flags))
    shutil.rmtree(here / "plain" / "attacks")
    known = ATTACKS["pgd"]

    def stops(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *rest: Any) -> Tensor:
        if threat.eps == 0.2:
            raise KeyboardInterrupt
        return known.run(model, x, y, threat, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "pgd", replace(known, run=stops))
        told = tell(f"attack plain {LITTLE} --json {flags}")
    assert (told.code, told.out) == (130, "")
    assert "interrupted" in told.err
    assert [p["eps"] for p in kept(here / "plain", "fgsm")] == [0, 0.1, 0.2]
    assert [p["eps"] for p in kept(here / "plain", "pgd")] == [0, 0.1], "written after each point"
    with counted() as made:
        points = attack(tell, "plain", flags)
    assert measured(made) == [("pgd", 0.2)]
    assert by_key(points) == straight


@pytest.mark.parametrize("name", ["autoattack", "pgd", "transfer-square"])
def test_a_point_that_was_interrupted_goes_on_behind_its_last_batch(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flags = f"--attacks {name} --eps 0.1 --subset 16 --batch-size 3 --no-checks --source other"
    straight = by_key(attack(tell, "plain", flags))
    shutil.rmtree(here / "plain" / "attacks")
    plain = name.removeprefix("transfer-")
    known = ATTACKS[plain].run if plain != "autoattack" else autoattack
    sizes: list[int] = []

    def spied(model: nn.Module, x: Tensor, *rest: Any, **given: Any) -> Tensor:
        sizes.append(len(x))
        if len(sizes) == 5:
            raise KeyboardInterrupt
        return known(model, x, *rest, **given)

    monkeypatch.setitem(ATTACKS, plain, replace(ATTACKS[plain], run=spied))
    monkeypatch.setattr(attacked, "autoattack", spied)
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)  # written after every batch
    assert tell(f"attack plain {LITTLE} {flags}").code == 130
    file = here / "plain" / "attacks" / f"{name}.unfinished"
    assert file.is_file()
    assert not file.with_suffix(".json").exists(), "no point before it is measured"
    sizes[:] = [0] * 10
    assert by_key(attack(tell, "plain", flags)) == straight
    assert sizes[10:12] == [3, 1], "12 of 16 images were done"
    assert not file.exists()


@pytest.mark.parametrize("left", ["broken", "other batches", "missing parts", "another seed"])
def test_what_was_left_of_another_point_is_not_taken_over(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    flags = "--attacks square --eps 0.1 --subset 16 --no-checks --batch-size 4"
    straight = by_key(attack(tell, "plain", flags))
    shutil.rmtree(here / "plain" / "attacks")
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(unfinished.Unfinished, "remove", lambda self: None)
    changed = {"other batches": "--batch-size 8", "another seed": "--manual-seed 2"}.get(left, "")
    attack(tell, "plain", f"{flags} {changed}")
    file = here / "plain" / "attacks" / "square.unfinished"
    file.with_suffix(".json").unlink()
    if left == "broken":
        file.write_bytes(file.read_bytes()[:-100])
    if left == "missing parts":
        with safetensors.safe_open(file, "pt") as opened_file:
            key = opened_file.metadata()["key"]
        file.write_bytes(safetensors.torch.save(safetensors.torch.load_file(file), {"key": key}))
    with counted() as made:
        assert by_key(attack(tell, "plain", flags)) == straight
    assert measured(made).count(("square", 0.1)) == 4, "all four batches"


def test_a_random_net_leaves_no_batches_since_its_draws_cannot_go_on(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(unfinished.Unfinished, "remove", lambda self: None)
    for run, count in (("random", 0), ("plain", 1)):
        attack(tell, run, "--attacks pgd --eps 0.1 --subset 8 --no-checks")
        assert len(list((here / run / "attacks").glob("*.unfinished"))) == count


def test_other_weights_are_measured_anew_and_never_mixed(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,pgd --eps 0,0.1"
    first = attack(tell, "plain", flags)
    own = attack(tell, "other", flags)
    shutil.copy(here / "other" / "weights.safetensors", here / "plain" / "weights.safetensors")
    with counted() as made:
        second = attack(tell, "plain", flags)
    assert len(measured(made)) == 4
    assert by_key(second) == by_key(own)
    assert by_key(second) != by_key(first)
    assert len(kept(here / "plain")) == 4, "the old points stay, under their own weights"
    assert len({p["weights"] for p in kept(here / "plain")}) == 2


@pytest.mark.parametrize(
    "change",
    ["--subset 20", "--steps 4", "--restarts 2", "--step-size 0.01", "--manual-seed 2", "--norm l2"],
)
def test_another_subset_effort_seed_or_norm_is_measured_anew_and_never_mixed(
    here: Path, tell: Tell, change: str
) -> None:
    flags = "--attacks uniform,pgd --eps 0,0.1 --no-checks"
    first = attack(tell, "plain", flags)
    with counted() as made:
        second = attack(tell, "plain", f"{flags} {change}")
    names = {name for name, _ in measured(made)}
    assert "pgd" in names
    alone = by_key(attack(tell, "plain", f"{flags} {change}", little=LITTLE))
    assert by_key(second) == alone
    if change != "--norm l2" and "subset" not in change:  # the worst case is over the weaker calls too
        first = [p for p in first if p["attack"] != WORST]
    saved = [p for path in (here / "plain" / "attacks").glob("pgd*.json") for p in kept(here / "plain", path.stem)]
    assert len(saved) == 4
    with counted() as made:
        again = by_key(attack(tell, "plain", flags))
    assert {key: again[key] for key in by_key(first)} == by_key(first), "and the first is still there"
    assert measured(made) == []


def test_the_flags_are_looked_for_anew_where_they_may_differ(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    examine = masking.examine

    def spy(*args: Any, **given: Any) -> masking.Findings:
        looked.append(sorted(given["black_boxes"]))
        return examine(*args, **given)

    monkeypatch.setattr(masking, "examine", spy)
    flags = "--attacks fgsm --eps 0,0.1"
    for more, new in (
        ("", True),
        ("", False),
        ("--steps 4", True),
        ("--check-subset 12", True),
        ("--subset 20", True),
        ("--norm l2", True),
        ("--manual-seed 3", True),
        ("--source other", True),
        ("--source other", False),
        ("", False),
    ):
        before = len(looked)
        attack(tell, "plain", f"{flags} {more}")
        assert (len(looked) > before) == new, more
    assert looked[-1] == ["square", "transfer"], "with a source, its images are tried too"
    assert looked[0] == ["square"]


def test_without_checks_the_flags_that_are_known_stay(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm --eps 0,0.1"
    with_checks = attack(tell, "random", flags)
    assert "random forward" in with_checks[1]["flags"]
    without = attack(tell, "random", f"{flags} --no-checks")
    assert [p["flags"] for p in without] == [p["flags"] for p in with_checks]
    assert "random forward" in kept(here / "random", "fgsm")[1]["flags"]
    shutil.rmtree(here / "random" / "attacks")
    assert attack(tell, "random", f"{flags} --no-checks")[1]["flags"][0] == "random forward", "that needs no check"


def found(**given: Any) -> Callable[..., masking.Findings]:
    """Checks that find this and nothing else."""
    numbers = {"images": 100, "classes": 10, "eps": 0.1, "zero": 0, "bad": 0, "softmax": False, "saturated": 0}
    numbers |= {"random": False, "large": 0, "fgsm": 50, "pgd": 40, "doubled": 40, "margin": 0}
    return lambda *args, **_: masking.Findings(**numbers | given)


CHECKED, FLAGS = "--attacks fgsm,pgd --eps 0,0.1", ["not converged", "saturated logits"]


@pytest.fixture
def deceiving(here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that the checks have flagged; from now on they find nothing."""
    monkeypatch.setattr(masking, "examine", found(doubled=30, saturated=9))
    assert [p["flags"] for p in attack(tell, "plain", CHECKED)] == [[], FLAGS] * 3
    monkeypatch.setattr(masking, "examine", found())
    return here / "plain"


def test_the_flags_of_a_net_are_shown_with_every_later_attack_on_it_also_without_checks(
    deceiving: Path, tell: Tell
) -> None:
    later = "--attacks uniform,deepfool,square,fgsm --eps 0.1 --iterations 1 --no-checks"
    points = attack(tell, "plain", later)
    assert {p["attack"] for p in points} == {"uniform", "deepfool", "square", "fgsm", WORST}
    assert all(p["flags"] == FLAGS for p in points)
    for name in ("uniform", "deepfool", "square"):
        assert all(p["flags"] == FLAGS for p in kept(deceiving, name)), "in what is kept too"
    assert f"* empirical upper bound, flags: {', '.join(FLAGS)}\n" in tell(f"attack plain {LITTLE} {later}").out
    assert all(p["flags"] == FLAGS for p in attack(tell, "plain", f"{later} --subset 50")), "of other images"
    for points in (attack(tell, "plain", f"--attacks fgsm --eps 0.1 --norm l2 {more}") for more in ("", "--no-checks")):
        assert points[0]["flags"] == FLAGS[1:], "what a norm has shown is not said of another"
    assert all(p["flags"] == [] for p in attack(tell, "other", later)), "nor of other weights"


def test_flags_are_not_washed_off_by_a_check_that_finds_nothing(deceiving: Path, tell: Tell) -> None:
    with counted() as made:
        points = attack(tell, "plain", f"{CHECKED} --check-subset 12")
    assert measured(made) == []
    checks = json.loads((deceiving / "attacks" / "checks.json").read_text())
    assert [check["flags"] for check in checks] == [FLAGS, []], "the second one was made"
    assert [p["flags"] for p in points] == [[], FLAGS] * 3
    for name in ("fgsm", "pgd", "worst-case"):
        assert [p["flags"] for p in kept(deceiving, name)] == [[], FLAGS]


def test_flags_that_were_kept_stay_where_the_checks_are_gone(deceiving: Path, tell: Tell) -> None:
    (deceiving / "attacks" / "checks.json").unlink()
    assert [p["flags"] for p in attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks")] == [FLAGS, FLAGS]


WEAK = "--attacks fgsm,pgd --eps 0,0.1 --steps 2 --step-size 0.001 --subset 100"


def test_what_the_curves_show_is_flagged_without_any_check(here: Path, tell: Tell) -> None:
    points = by_key(attack(tell, "plain", f"{WEAK} --no-checks"))
    assert points["pgd", 0.1]["correct"] > points["fgsm", 0.1]["correct"] + 5
    assert all(p["flags"] == (["PGD weaker than FGSM"] if eps else []) for (_, eps), p in points.items())


def test_the_subset_is_the_same_for_every_run_and_seed(here: Path, tell: Tell) -> None:
    seen: list[Tensor] = []
    known = ATTACKS["uniform"]

    def spy(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        seen.append(x)
        return known.run(model, x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "uniform", replace(known, run=spy))
        points = [
            attack(tell, run, f"--attacks uniform --eps 0.1 --no-checks {more}")[0]
            for run, more in (("plain", ""), ("other", ""), ("random", ""), ("plain", "--manual-seed 9"))
        ]
    assert len({p["subset"] for p in points}) == 1
    assert all(torch.equal(x, seen[0]) for x in seen)
    assert len(seen[0]) == 30
    _, x, _ = opened(here / "plain")
    assert not torch.equal(seen[0], x[:30]), "drawn, not the first ones"
    more = attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks --subset 600")[0]
    assert (more["total"], more["subset"]) != (30, points[0]["subset"])
    assert more["total"] == TEST


@pytest.mark.parametrize("name", ["fgsm", "checks"])
def test_a_file_that_is_not_ours_is_one_sentence(here: Path, tell: Tell, name: str) -> None:
    attack(tell, "plain", "--attacks fgsm --eps 0.1")
    (here / "plain" / "attacks" / f"{name}.json").write_text("{")
    told = tell(f"attack plain {LITTLE} --attacks fgsm --eps 0.1 --json")
    assert (told.code, told.out) == (2, "")
    assert re.fullmatch(rf"perturblab: error: \S*{name}\.json cannot be read as .*; delete it to .*\n", told.err)


# --- transfer -------------------------------------------------------------------------------------------------------


def test_a_transfer_is_made_on_the_source_and_judged_on_the_run(here: Path, tell: Tell) -> None:
    flags = "--attacks transfer-fgsm,fgsm --eps 0,0.2 --source other --subset 600 --no-checks"
    points = by_key(attack(tell, "plain", flags))
    model, x, y = opened(here / "plain")
    source, _, _ = opened(here / "other")
    moved = fgsm(source, x, y, Threat("linf", 0.2))
    right = still_right(model, moved, y)
    (saved,) = [p for p in kept(here / "plain", "transfer-fgsm") if p["eps"] == 0.2]
    assert decoded(saved) == right.tolist()
    assert points["transfer-fgsm", 0.2]["correct"] == int(right.sum())
    assert points["fgsm", 0.2]["correct"] < points["transfer-fgsm", 0.2]["correct"] < points["fgsm", 0]["correct"]
    assert points[WORST, 0.2]["settings"]["attacks"] == ["fgsm", "transfer-fgsm"]
    assert points["transfer-fgsm", 0.2]["settings"]["source"] == "other"


def test_pgd_stops_early_on_the_net_itself_and_goes_all_the_way_for_a_transfer(here: Path, tell: Tell) -> None:
    flags = "--attacks pgd,transfer-pgd --eps 0.2 --source other --subset 600 --batch-size 600 --no-checks"
    points = by_key(attack(tell, "plain", flags))
    assert points["pgd", 0.2]["settings"]["early_stop"] is True
    assert points["transfer-pgd", 0.2]["settings"]["early_stop"] is False
    model, x, y = opened(here / "plain")
    source, _, _ = opened(here / "other")
    generator = stream(1, "transfer-pgd 0.2")
    moved = pgd(source, x, y, Threat("linf", 0.2), steps=3, generator=generator)
    (saved,) = kept(here / "plain", "transfer-pgd")
    assert decoded(saved) == still_right(model, moved, y).tolist()


def test_another_source_of_the_same_name_is_measured_anew(here: Path, tell: Tell) -> None:
    flags = "--attacks transfer-fgsm --eps 0.2 --no-checks"
    first = attack(tell, "plain", f"{flags} --source other")[0]
    (here / "elsewhere").mkdir()
    shutil.copytree(here / "mixed", here / "elsewhere" / "other")
    with counted() as made:
        second = attack(tell, "plain", f"{flags} --source elsewhere/other")[0]
    assert measured(made) == [("fgsm", 0.2)]
    assert first["settings"] != second["settings"]
    assert len(kept(here / "plain", "transfer-fgsm")) == 2


def test_a_transferred_deepfool_keeps_its_axis_of_iterations(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,uniform,transfer-deepfool,deepfool --eps 0.1 --iterations 1,3 --source other"
    points = by_key(attack(tell, "plain", f"{flags} --norm l2"))
    assert ("transfer-deepfool", 1.0) in points
    assert [key for key in points if key[0] == WORST] == [(WORST, 0.1)]
    assert points[WORST, 0.1]["settings"]["attacks"] == ["fgsm", "uniform"]
    assert len(kept(here / "plain", "transfer-deepfool")) == 2
    table = tell(f"attack plain {LITTLE} {flags} --norm l2").out.splitlines()
    (at,) = [n for n, line in enumerate(table) if line.startswith("iterations")]
    assert [line.split()[0] for line in table[at + 1 : at + 5 : 2]] == ["transfer-deepfool", "deepfool"]


def test_a_random_source_is_frozen_so_that_every_attack_can_be_made_on_it(here: Path, tell: Tell) -> None:
    flags = "--attacks transfer-square,transfer-pgd,transfer-deepfool --eps 0.1 --source random --no-checks"
    points = attack(tell, "plain", flags)
    assert {p["attack"] for p in points} == {"transfer-square", "transfer-pgd", "transfer-deepfool", WORST}
    assert all(p["draws"] == [] for p in points), "the run itself has one answer"


# --- mistakes of the user -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plain --eps x", r"--eps got 'x'; expected a number of at least 0, or a fraction such as 8/255"),
        ("plain --eps 0.1,", r"--eps got ''; expected a number"),
        ("plain --eps=-0.1", r"--eps got '-0\.1'; expected a number of at least 0"),
        ("plain --eps 8/0", r"--eps got '8/0'; expected"),
        ("plain --eps nan", r"--eps got 'nan'; expected"),
        ("plain --eps inf", r"--eps got 'inf'; expected"),
        ("plain --attacks fgms", r"--attacks got 'fgms'; choose among fgsm, pgd, .*, or transfer-NAME of one"),
        ("plain --attacks fgsm,", r"--attacks got ''; choose among"),
        ("plain --attacks transfer-", r"--attacks got 'transfer-'; choose among"),
        ("plain --attacks 'fgsm frozen'", r"--attacks got 'fgsm frozen'; choose among"),
        ("plain --attacks transfer-fgsm", r"--attacks got 'transfer-fgsm' and no --source; give the run whose images"),
        ("plain --norm l1", r".*--norm.*l1"),
        ("plain --attacks fgsm-normalised --norm l2", r"--norm l2 is not known to fgsm-normalised; it knows linf"),
        ("plain --steps 0", r"--steps got '0': .*greater than or equal to 1"),
        ("plain --restarts 0", r"--restarts got '0': "),
        ("plain --subset 0", r"--subset got '0': "),
        ("plain --step-size 0", r"--step-size got '0': .*greater than 0"),
        ("plain --iterations 0,1", r"--iterations got '0,1'; expected integers of at least 1, such as 1,2,3"),
        (
            "plain --check-subset 9",
            r"--check-subset and --subset leave the masking checks 9 images, too few .*; give both",
        ),
        (
            "plain --subset 9",
            r"--check-subset and --subset leave the masking checks 9 images, too few .*; .* at least 10, ",
        ),
        ("plain --batchout-in-eval", r"--batchout-in-eval given, but plain was trained without BatchOut; drop it"),
        ("guarded --batchout-in-eval", r"--batchout-in-eval given, but the partners go by class, and evaluation has"),
        (
            "plain --inference-batchout 2",
            r"--inference-batchout given, but plain was trained without BatchOut; drop it",
        ),
        ("mixed --inference-batchout 0", r"--inference-batchout got '0': "),
        (
            "mixed --inference-batchout 2 --batchout-in-eval",
            r"--batchout-in-eval and --inference-batchout given, two ways to use BatchOut; drop one",
        ),
        ("plain --source plain", r"--source plain has the weights of plain itself; choose another run"),
        ("plain --source three", r"--source three was trained on other images than plain; choose another"),
        ("plain --source nowhere", r".*nowhere.*"),
        ("nowhere", r".*nowhere.*"),
        ("plain --source", r".*--source.*"),
        ("", r".*RUN.*"),
    ],
)
def test_a_mistake_is_one_sentence_and_measures_nothing(here: Path, tell: Tell, line: str, said: str) -> None:
    with counted() as made:
        try:
            told = tell(f"attack {line} --nthreads 1")
        except SystemExit as end:  # argparse's own way out
            pytest.fail(f"ended with {end.code} outside main")
    assert told.code == 2
    assert told.out == ""
    assert re.fullmatch(rf"perturblab: error: {said}[^\n]*\n", told.err), told.err
    assert made == []
    assert not list(here.glob("*/attacks"))


def test_weights_that_are_no_numbers_are_one_sentence_and_leave_no_point(here: Path, tell: Tell) -> None:
    path = here / "plain" / "weights.safetensors"
    spoilt = {name: value * torch.nan for name, value in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(spoilt, path)
    for flags in ("--attacks fgsm --eps 0.1", "--attacks pgd --eps 0.1 --norm l2", "--attacks square --eps 0.1"):
        told = tell(f"attack plain {LITTLE} {flags} --json")
        assert told.code == 2
        assert re.fullmatch(r"perturblab: error: logits.* are not finite; nothing is .*\n", told.err), told.err
    assert not list((here / "plain").glob("attacks/*.json"))


def test_an_attack_that_leaves_the_ball_is_a_failed_check(here: Path, tell: Tell) -> None:
    known = ATTACKS["fgsm"]
    too_far = replace(known, run=lambda m, x, y, t, e, g: (x + 2 * t.eps).clamp(0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "fgsm", too_far)
        with pytest.raises(RuntimeError, match=r"^fgsm left the ball or the bounds in 30 of 30 images$"):
            tell(f"attack plain {LITTLE} --attacks fgsm --eps 0.1")
    assert not list((here / "plain").glob("attacks/*.json"))


# --- published mistakes ---------------------------------------------------------------------------------------------


def test_the_published_mistakes_are_named_and_stay_out_of_the_worst_case(here: Path, tell: Tell) -> None:
    """The run normalises: one deviation for all pixels."""
    flags = "--attacks fgsm,uniform,fgsm-unclipped,fgsm-normalised --eps 0,0.3 --subset 200 --no-checks"
    points = by_key(attack(tell, "three", flags))
    run, _ = runs.trained_run(here / "three", Show(quiet=True), {})
    (deviation,) = run.preparation.std
    assert 0.2 < deviation < 0.5
    wrong = points["fgsm-normalised", 0.3]
    assert wrong["distance"] == pytest.approx(0.3 * deviation, rel=1e-4), "in pixels, a third of what was said"
    assert "published mistake" in wrong["settings"]["mistake"]
    assert wrong["correct"] > points["fgsm", 0.3]["correct"]
    assert "mistake" in points["fgsm-unclipped", 0.3]["settings"]
    assert points[WORST, 0.3]["settings"]["attacks"] == ["fgsm", "uniform"]


def test_batchout_in_evaluation_is_a_mode_of_its_own_and_random(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,deepfool,square --eps 0,0.1"
    honest = by_key(attack(tell, "mixed", flags))
    assert not any("frozen" in name for name, _ in honest)
    assert all("mode" not in p["settings"] and p["draws"] == [] for p in honest.values())
    active = by_key(attack(tell, "mixed", f"{flags} --batchout-in-eval"))
    names = {name for name, _ in active}
    assert names == {"fgsm", "fgsm frozen", "deepfool frozen", "square frozen"}
    for (name, eps), point in active.items():
        assert "published mistake" in point["settings"]["mode"]
        assert len(point["draws"]) == (0 if "frozen" in name else 3)
        assert ("random forward" in point["flags"]) == (eps > 0)
    assert len(set(active["fgsm", 0.1]["draws"])) > 1 or len(set(active["fgsm", 0.0]["draws"])) > 1
    assert len([p for p in kept(here / "mixed", "fgsm") if p["eps"] == 0.1]) == 2, "both modes are kept"
    assert by_key(attack(tell, "mixed", flags)) == honest


def test_batchout_in_evaluation_is_random_even_where_an_image_has_no_partner_but_itself(here: Path, tell: Tell) -> None:
    flags = "--attacks square --eps 0.1 --batchout-in-eval --subset 1 --no-checks"
    assert {p["attack"] for p in attack(tell, "mixed", flags)} == {"square frozen"}


@pytest.mark.parametrize("mode", ["--batchout-in-eval", "--inference-batchout 2"])
def test_the_frozen_twin_is_the_same_net_in_batches_of_any_size(mode: str, here: Path, tell: Tell) -> None:
    shutil.copytree(here / "mixed", here / "again")
    flags = f"--attacks fgsm,square --eps 0,0.1,0.2 --subset 60 --no-checks {mode}"
    whole = by_key(attack(tell, "mixed", f"{flags} --batch-size 60"))
    parts = by_key(attack(tell, "again", f"{flags} --batch-size 7"))
    for eps in (0, 0.1, 0.2):
        assert whole["fgsm frozen", eps]["correct"] == parts["fgsm frozen", eps]["correct"]


def test_batchout_at_inference_is_a_random_net_whose_draws_are_training_images(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,autoattack --eps 0.1 --check-subset 10 --inference-batchout"
    few, many = (by_key(attack(tell, "mixed", f"{flags} {count}")) for count in (1, 5))
    for count, points in ((1, few), (5, many)):
        assert points.keys() == {("fgsm", 0.1), ("fgsm frozen", 0.1), ("autoattack frozen", 0.1)}, "no headline of it"
        assert {p["settings"]["mode"] for p in points.values()} == {
            f"BatchOut at inference, beside {count} training images"
        }
        assert all("random forward" in p["flags"] for p in points.values())
        assert (len(points["fgsm", 0.1]["draws"]), points["fgsm", 0.1]["settings"]["draws"]) == (3, 2)
    assert len(kept(here / "mixed", "fgsm")) == 2, "both numbers of images are kept"
    mixed = [
        *(point["settings"]["mode"].split(",")[0] for point in kept(here / "mixed", "fgsm")),
        *(p["settings"].get("mode", "") for p in attack(tell, "mixed", "--attacks fgsm --eps 0.1")),
    ]
    assert mixed == ["BatchOut at inference", "BatchOut at inference", ""]
    assert "random forward" not in by_key(attack(tell, "mixed", "--attacks fgsm --eps 0.1"))["fgsm", 0.1]["flags"]


def test_batchout_at_inference_needs_no_labels(here: Path, tell: Tell) -> None:
    assert len(attack(tell, "guarded", "--attacks fgsm --eps 0.1 --no-checks --inference-batchout 2")) == 2


def test_the_worst_case_is_never_overwritten_by_a_weaker_one_or_by_a_mistake(here: Path, tell: Tell) -> None:
    def bits(point: dict[str, Any]) -> int:
        return int(point["answers"], 16)

    steps = [
        "--attacks fgsm,uniform --eps 0,0.2",
        "--attacks pgd,uniform --eps 0.2",
        "--attacks gaussian,uniform --eps 0.2",
    ]
    seen = []
    for flags in steps:
        attack(tell, "mixed", f"{flags} --no-checks --subset 100")
        (worst,) = [p for p in kept(here / "mixed", "worst-case") if p["eps"] == 0.2]
        seen.append(bits(worst))
    assert seen[1] & seen[0] == seen[1] == seen[2] & seen[1]
    assert seen[1].bit_count() < seen[0].bit_count()
    points = [p for name in ("fgsm", "pgd", "uniform", "gaussian") for p in kept(here / "mixed", name)]
    right = [all(each) for each in zip(*(decoded(p) for p in points), strict=True)]
    assert decoded(worst) == right, "also right without an attack"
    assert worst["settings"]["attacks"] == ["fgsm", "gaussian", "pgd", "uniform"]
    before = (here / "mixed" / "attacks" / "worst-case.json").read_bytes()
    mistakes = "--attacks fgsm,uniform --eps 0,0.2 --batchout-in-eval --no-checks --subset 100"
    assert WORST not in {p["attack"] for p in attack(tell, "mixed", mistakes)}
    assert (here / "mixed" / "attacks" / "worst-case.json").read_bytes() == before


def test_an_image_that_was_wrong_counts_as_wrong_where_all_attacks_set_it_right_and_radius_0_was_not_asked_for(
    here: Path, tell: Tell
) -> None:
    """Attacks on the whole of [0, 1] that put an image that the net knows in the place of every other."""
    model, x, y = opened(here / "plain")
    right = still_right(model, x, y)
    known = {int(label): x[right & (y == label)][0] for label in y.unique()}

    def run(model: nn.Module, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
        return torch.stack([known[int(label)] for label in y])

    with pytest.MonkeyPatch.context() as patch:
        for name in ("uniform", "gaussian"):
            patch.setitem(ATTACKS, name, replace(ATTACKS[name], run=run))
        points = attack(tell, "plain", "--attacks uniform,gaussian --eps 1 --subset 600 --no-checks")
    assert [p["correct"] for p in points] == [TEST, TEST, int(right.sum())]
    assert int(right.sum()) < TEST


def test_deepfool_without_a_clip_leaves_the_bounds_and_is_a_mistake(here: Path, tell: Tell) -> None:
    points = by_key(attack(tell, "plain", "--attacks deepfool,deepfool-unclipped --iterations 1,3 --no-checks"))
    model, x, y = opened(here / "plain")
    rows = torch.randperm(len(x), generator=stream(0, "attacked images"))[:30].sort().values
    moved = deepfool(model, x[rows], y[rows], Threat("l2", math.inf), iterations=3, clip=False)
    assert points["deepfool-unclipped", 3]["correct"] == int(still_right(model, moved, y[rows]).sum())
    assert points["deepfool-unclipped", 3]["distance"] == pytest.approx(
        float((moved - x[rows]).flatten(1).norm(dim=1).max())
    )
    assert points["deepfool-unclipped", 3]["correct"] < points["deepfool", 3]["correct"]
    assert "mistake" in points["deepfool-unclipped", 3]["settings"]


# --- random nets ----------------------------------------------------------------------------------------------------


def test_a_random_net_gets_frozen_twins_several_verdicts_and_never_a_plain_autoattack(here: Path, tell: Tell) -> None:
    names = "fgsm,pgd,deepfool,autoattack,square,uniform,universal,fgsm-normalised"
    flags = f"--attacks {names} --eps 0,0.5 --iterations 1 --subset 12"
    points = attack(tell, "random", flags)
    twins = ("fgsm", "pgd", "universal", "fgsm-normalised")
    want = {*twins, *(f"{name} frozen" for name in twins), "uniform"}
    want |= {"deepfool frozen", "autoattack frozen", "square frozen"}
    assert {p["attack"] for p in points} == want
    for point in points:
        assert len(point["draws"]) == (0 if point["attack"].endswith("frozen") else 3), point["attack"]
        if point["draws"]:
            assert point["correct"] == sum(point["draws"]) // 3
            assert point["settings"]["verdicts"] == 3
        if point["attack"] in ("fgsm", "pgd"):
            assert point["settings"]["draws"] == 2, "expectation over transformation"
            assert not point["settings"].get("early_stop"), "no net is judged by its worst draw"
        if point["eps"]:
            assert "random forward" in point["flags"]
    assert max(len(set(p["draws"])) for p in points) > 1, "the draws differ"


def test_a_random_net_has_no_worst_case_and_says_so(here: Path, tell: Tell) -> None:
    """Every attack is judged by draws of its own; what all of them left right in some draw or other says nothing."""
    flags = "--attacks fgsm,uniform --eps 0.1 --no-checks"
    stale = {"version": 1, "points": []}
    (here / "random" / "attacks").mkdir()
    (here / "random" / "attacks" / "worst-case.json").write_text(json.dumps(stale))
    told = tell(f"attack random {LITTLE} {flags}")
    assert re.search("(?m)^no worst case of a random net: ", told.out)
    assert WORST not in {p["attack"] for p in attack(tell, "random", flags)}
    assert kept(here / "random", "worst-case") == []
    assert "no worst case" not in tell(f"attack plain {LITTLE} {flags}").out


def test_every_verdict_is_a_fresh_draw_that_the_attack_has_not_seen(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perturblab import evaluate

    counters: list[tuple[str, int]] = []

    def position(model: nn.Module) -> int:
        return max(int(value.flatten()[-1]) for name, value in model.named_buffers() if name.endswith("draws"))

    known, judge = ATTACKS["fgsm"], evaluate.answers

    def run(model: nn.Module, *rest: Any) -> Tensor:
        made = known.run(model, *rest)
        counters.append(("attack ended at", position(model)))
        return made

    def answers(model: nn.Module, *rest: Any, **given: Any) -> evaluate.Answers:
        counters.append(("verdict begins at", position(model)))
        return judge(model, *rest, **given)

    monkeypatch.setitem(ATTACKS, "fgsm", replace(known, run=run))
    monkeypatch.setattr(evaluate, "answers", answers)
    attack(tell, "random", "--attacks fgsm --eps 0.1 --no-checks")
    kinds = [kind for kind, _ in counters[:4]]
    assert kinds == ["attack ended at", *["verdict begins at"] * 3]
    places = [place for _, place in counters[:4]]
    assert places[1] >= places[0]
    assert places[1] < places[2] < places[3]


def test_more_verdicts_of_a_random_net_are_measured_anew(here: Path, tell: Tell) -> None:
    attack(tell, "random", "--attacks uniform --eps 0.1 --no-checks")
    (point,) = attack(tell, "random", "--attacks uniform --eps 0.1 --no-checks --verdicts 5")
    assert len(point["draws"]) == 5
    assert attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks")
    with counted() as made:
        attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks --verdicts 5")
    assert measured(made) == [], "a fixed net has one verdict anyway"


def test_a_random_net_is_the_same_for_the_same_seed_whatever_was_measured_before(here: Path, tell: Tell) -> None:
    shutil.copytree(here / "random", here / "again")
    flags = "--attacks uniform,fgsm --eps 0.1,0.3 --no-checks"
    first = by_key(attack(tell, "random", flags))
    attack(tell, "again", "--attacks fgsm --eps 0.3 --no-checks")
    torch.manual_seed(123)
    assert by_key(attack(tell, "again", flags)) == first


# --- autoattack, pictures, flags ------------------------------------------------------------------------------------


def test_autoattack_on_a_run_is_no_weaker_than_its_parts(here: Path, tell: Tell) -> None:
    flags = "--attacks pgd,autoattack,square --eps 0,0.25 --subset 16 --no-checks"
    points = by_key(attack(tell, "three", flags))
    assert points["autoattack", 0.25]["correct"] <= points["pgd", 0.25]["correct"]
    assert points["autoattack", 0.25]["correct"] <= points["square", 0.25]["correct"]
    assert points["autoattack", 0.25]["settings"] == {"queries": 15, "seed": 1}
    few = by_key(attack(tell, "three", "--attacks autoattack --eps 0.1 --subset 16 --no-checks"))["autoattack", 0.1]
    parts = dict(few["parts"])
    assert list(parts) == ["apgd-ce", "apgd-dlr", "fab-t", "square"], "three classes"
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert parts["square"] == few["correct"] > 0
    assert points["autoattack", 0]["parts"] == points["pgd", 0.25]["parts"] == []
    assert points["autoattack", 0.25]["distance"] <= 0.25 + 1e-6


def test_the_parts_of_autoattack_are_added_over_batches_and_printed(here: Path, tell: Tell) -> None:
    flags = "--attacks autoattack --eps 0.1 --subset 16 --no-checks"
    model, x, y = opened(here / "three")
    rows = torch.randperm(len(x), generator=stream(0, "attacked images"))[:16].sort().values
    generator, want = stream(1, "autoattack 0.1"), Counter[str]()
    for part in rows.split(5):
        table: dict[str, int] = {}
        autoattack(model, x[part], y[part], Threat("linf", 0.1), queries=15, table=table, generator=generator)
        want.update(table)
    told = tell(f"attack three {LITTLE} {flags} --batch-size 5")
    assert ", ".join(f"{name} {left}" for name, left in want.items()) in told.out
    assert [tuple(pair) for pair in kept(here / "three", "autoattack")[0]["parts"]] == list(want.items())


def test_a_transferred_autoattack_tells_no_parts_which_would_be_those_of_the_source(here: Path, tell: Tell) -> None:
    flags = "--attacks transfer-autoattack --eps 0.1 --subset 12 --source other --no-checks"
    assert attack(tell, "plain", flags)[0]["parts"] == []


def test_only_pictures_that_were_made_are_named_and_all_curves_of_the_images_are_drawn(here: Path, draw: Tell) -> None:
    def shown() -> set[str]:
        svg = (here / "plain" / "attacks" / "curves.svg").read_text()
        return {re.sub(r" \*$", "", text) for text in re.findall(r"<text[^>]*>([^<]+)</text>", svg)}

    told = draw(f"attack plain {LITTLE} --attacks deepfool --no-checks")
    assert told.out.splitlines()[-1] == "pictures: plain/attacks/curves.svg"
    assert not (here / "plain" / "attacks" / "examples.svg").exists()
    assert attack(draw, "plain", f"{WEAK} --subset 30 --no-checks")[1]["flags"]
    attack(draw, "plain", "--attacks gaussian --eps 0.1 --no-checks --subset 29")
    attack(draw, "plain", "--attacks square --eps 0.1 --no-checks --norm l2")
    attack(draw, "plain", "--attacks uniform --eps 0.1 --no-checks")
    assert {"fgsm", "pgd", "uniform", "deepfool", WORST} <= shown()
    assert not {"gaussian", "square"} & shown(), "of other images, of another norm"
    assert "empirical upper bound, flags: PGD weaker than FGSM" in (here / "plain/attacks/curves.svg").read_text()


def test_pictures_have_the_same_bytes_every_time_and_show_the_images(here: Path, draw: Tell) -> None:
    shutil.copytree(here / "plain", here / "again")
    flags = "--attacks fgsm,pgd,deepfool --eps 0,0.1,0.3"
    for run in ("plain", "again"):
        attack(draw, run, flags)
    for name in ("curves.svg", "examples.svg"):
        one, two = ((here / run / "attacks" / name).read_bytes() for run in ("plain", "again"))
        assert one == two, name
    before = {name: (here / "plain" / "attacks" / name).read_bytes() for name in ("curves.svg", "examples.svg")}
    attack(draw, "plain", flags)  # everything is known now
    assert {name: (here / "plain" / "attacks" / name).read_bytes() for name in before} == before
    svg = before["examples.svg"].decode()
    assert svg.count("<image") == 5 * (1 + 2 * 2), "clean, change and result at two radii, of five images"
    assert all(f">{text}<" in svg for text in ("clean", "change / 0.1", "0.1", "change / 0.3", "0.3"))


def test_a_flagged_curve_says_so_in_the_table_the_json_the_file_and_the_picture(here: Path, draw: Tell) -> None:
    told = draw(f"attack random {LITTLE} --attacks fgsm --eps 0,0.3")
    assert re.search(r"(?m)^\* empirical upper bound, flags: .*random forward", told.out)
    assert re.search(r"(?m)^fgsm +\d+\.\d\d +\d+\.\d\d\*$", told.out)
    assert "empirical upper bound, flags: " in (here / "random" / "attacks" / "curves.svg").read_text()
    points = attack(draw, "random", "--attacks fgsm --eps 0,0.3")
    assert all(("random forward" in p["flags"]) == (p["eps"] > 0) for p in points)
    assert all(("random forward" in p["flags"]) == (p["eps"] > 0) for p in kept(here / "random", "fgsm"))


def test_a_curve_that_rises_is_flagged_in_what_is_kept_too(here: Path, tell: Tell) -> None:
    """A large step that turns every image grey, against a small one that breaks them."""
    known = ATTACKS["fgsm"]

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *rest: Any) -> Tensor:
        return x.clone() if threat.eps == 0.4 else known.run(model, x, y, threat, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "fgsm", replace(known, run=run))
        points = attack(tell, "plain", "--attacks fgsm,uniform --eps 0,0.2,0.4 --no-checks")
    flags = {(p["attack"], p["eps"]): p["flags"] for p in points}
    assert flags["fgsm", 0.2] == flags["fgsm", 0.4] == ["not monotone"]
    assert flags["uniform", 0.4] == []
    assert [p["flags"] for p in kept(here / "plain", "fgsm")] == [[], ["not monotone"], ["not monotone"]]


def test_noise_that_breaks_less_at_a_larger_radius_does_not_flag_the_worst_case(here: Path, tell: Tell) -> None:
    known = ATTACKS["uniform"]

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *rest: Any) -> Tensor:
        return x.clone() if threat.eps == 0.4 else ATTACKS["fgsm"].run(model, x, y, threat, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "uniform", replace(known, run=run))
        points = attack(tell, "plain", "--attacks fgsm,uniform --eps 0,0.2,0.4 --no-checks")
    flags = {(p["attack"], p["eps"]): p["flags"] for p in points}
    assert flags["uniform", 0.4] == ["not monotone"]
    assert flags["worst case", 0.2] == flags["worst case", 0.4] == flags["fgsm", 0.4] == []


def test_a_net_that_was_not_checked_is_told_as_such(here: Path, tell: Tell) -> None:
    few = f"attack plain {LITTLE} --eps 0,0.1"
    said = "not checked for masked gradients: flags come from the curves alone"
    assert said in tell(f"{few} --attacks fgsm --no-checks").out
    assert said not in tell(f"{few} --attacks pgd").out
    assert said not in tell(f"{few} --attacks fgsm --no-checks").out, "it was checked before"


def test_radii_are_those_of_the_norm(here: Path, tell: Tell) -> None:
    points = attack(tell, "plain", "--attacks pgd --norm l2 --no-checks")
    assert [p["eps"] for p in points] == [0, 0.5, 1, 1.5, 2, 3]
    assert points[-1]["correct"] == 0 < points[0]["correct"], "far enough for the net to fall"


@pytest.mark.parametrize(
    ("attacks", "title", "images"),
    [("square,uniform", "pgd", 3), ("fgsm,square", "fgsm", 3), ("deepfool", "", 0), ("fgsm-unclipped", "", 0)],
)
def test_the_picture_of_images_is_there_whatever_the_attacks_by_radius(
    attacks: str, title: str, images: int, here: Path, draw: Tell
) -> None:
    told = draw(f"attack plain {LITTLE} --attacks {attacks} --eps 0,0.2 --no-checks")
    path = here / "plain" / "attacks" / "examples.svg"
    assert path.exists() == ("examples.svg" in told.out) == bool(images)
    if images:
        assert path.read_text().count("<image") == 5 * images
        assert f": {title}<" in path.read_text()


def test_the_checks_of_a_plain_run_raise_nothing(here: Path, tell: Tell) -> None:
    little = "--subset 200 --queries 100 --check-subset 200 --nthreads 1"
    points = attack(tell, "plain", "--attacks fgsm --eps 0,0.05,0.3 --source other", little=little)
    assert {flag for p in points for flag in p["flags"]} == set()
    (checks,) = json.loads((here / "plain" / "attacks" / "checks.json").read_text())
    assert checks["flags"] == []
    assert len(checks["findings"]["trace"]) == 50, "loss against step is kept"
    assert set(checks["findings"]["black_box"]) == {"uniform", "gaussian", "square", "transfer"}
