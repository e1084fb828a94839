"""The page: the same records give the same bytes, nothing from outside, nothing hostile gets through."""

import random
import re
import shlex
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from builders import make, metrics_row, point, run
from page_reader import AUDITED, RESULTS, SOME, Reader, committed, some_page
from perturblab.cli import config_file, main
from perturblab.errors import UserError
from perturblab.records import results, store
from perturblab.records.metrics import Row, metrics_text
from perturblab.records.record import Record
from perturblab.records.results import Failed, Result
from perturblab.report import claims_table, page, protocol
from perturblab.studies.catalogue import CLAIMS, FIGURES
from perturblab.studies.presets import PRESETS
from perturblab.studies.setups import choose_setups
from told import in_order


def test_the_same_records_give_the_same_bytes_in_any_order() -> None:
    shuffled = list(SOME)
    random.Random(0).shuffle(shuffled)
    assert some_page() == page.page(shuffled)


def test_the_page_is_whole_and_needs_nothing_from_outside() -> None:
    text = some_page()
    seen = Reader(text)
    assert seen.open == []
    assert len(seen.ids) == len(set(seen.ids)), "every id once"
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in seen.addresses)
    inside = {address[1:] for address in seen.addresses if address.startswith("#")}
    assert inside <= set(seen.ids), "every link has its target"
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(seen.ids)
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    assert "@import" not in text


def test_every_figure_and_every_claim_is_on_the_page() -> None:
    text = some_page()
    assert all(f">{published}: " in text for published in FIGURES)
    assert all(str(escape(claim.text)) in text for claim in CLAIMS.values())
    assert text.count("not yet measured") > 100
    for title in ("Curves under attack", "Learning curves", "The metric audit", "Noise masks", "Protocol"):
        assert f"<h2>{title}" in text
    assert text.count('<svg class="chart"') == 3
    assert text.count('<circle class="seed"') >= 3, "a dot for every seed"
    assert "perturblab run --preset cpu</code>" in text
    assert re.search(r"upper bound\b[^<]*\bzero gradients", text)


@pytest.mark.parametrize(
    ("seeds", "want"),
    [
        ({"K4": 10, "H5": 10, "K1": 3}, ["perturblab run --preset cpu"]),
        ({"K4": 2}, ["perturblab run --preset cpu"]),
        ({"K4": 10, "A2": 3, "K8": 3}, ["perturblab run --preset cpu", "perturblab run --preset cpu A2 K8 --seeds 3"]),
        ({"K1": 5, "A2": 3}, ["perturblab run --preset cpu A2 --seeds 3", "perturblab run --preset cpu K1 --seeds 5"]),
    ],
)
def test_the_commands_make_what_is_shown_and_no_more(seeds: dict[str, int], want: list[str]) -> None:
    of = [run(setup, seed) for setup, last in seeds.items() for seed in range(1, last + 1)]
    text = page.page(of)
    assert f"<code>{chr(10).join(want)}</code>" in text
    made: dict[str, int] = {}
    for command in want:  # as the command line reads it
        words = command.split()[4:]
        ids, last = (words[:-2], int(words[-1])) if "--seeds" in words else (words, None)
        for setup in choose_setups(ids, PRESETS["cpu"]):
            made[setup.id] = last or max(PRESETS["cpu"].seeds_of(setup.id))
    assert all(made[setup] >= last for setup, last in seeds.items())


def test_the_attacks_of_a_run_are_repeated_too() -> None:
    text = page.page([run("BO-mnist-none", 1, preset="robust")])
    assert "perturblab attack RUN --attacks fgsm,pgd --eps 0,0.1,0.2,0.3,0.4,0.5 --subset 1000 --source RUN-OF" in text


def test_the_numerics_numbers_of_the_records_are_told() -> None:
    def of(seed: int, number: int) -> Result:
        one = run("K4", seed)
        return replace(one, record=one.record.model_copy(update={"numerics": number}))

    for numbers, told in (((0, 0, 0), "0"), ((2, 0, 2), "0, 2")):
        text = page.page([of(seed, number) for seed, number in enumerate(numbers, 1)])
        cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", text.split('aria-label="Compute spent"')[1])
        assert cells[5:] == ["cpu", "3", "0.00", "0.00", told]


def test_no_records_are_told() -> None:
    text = page.page([])
    assert Reader(text).open == []
    assert "no records" in text
    assert "perturblab run --preset quick" in text
    assert re.fullmatch(rf".*{in_order('no records')}.*\n", claims_table.claims_markdown([]))


def test_hostile_strings_are_text() -> None:
    evil = '<script>alert(1)</script><img src=x onerror="alert(1)">'
    record = make(1, label=evil, net_type=evil)
    attacked = Result(record, (), tuple(point(f"fgsm{evil}", eps, [1, 0]) for eps in (0.0, 0.1)))
    placed = run("K4", 1)
    flagged = Result(placed.record, (), (point("fgsm", 0.1, [1, 0], flags=(evil,)),))
    text = page.page([attacked, flagged], [Failed(evil, f"no {evil}")])
    seen = Reader(text)
    assert "script" not in seen.tags
    assert "&lt;script&gt;" in text
    assert "x" not in seen.addresses


def test_control_characters_are_shown_as_such() -> None:
    text = page.page([], [Failed("K4\x00 seed\x1b[31m 2", "a\tb")])
    assert "K4\N{REPLACEMENT CHARACTER} seed\N{REPLACEMENT CHARACTER}[31m 2: a\tb" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)


@pytest.mark.parametrize("where", ["record.json", "failed.json", "metrics.jsonl", "attacks/fgsm.json"])
def test_half_a_character_is_one_sentence(where: str, tmp_path: Path) -> None:
    store.save_record(make(1), tmp_path / "record.json")
    file = tmp_path / where
    broken = {"record.json": file.read_text() if file.is_file() else "", "failed.json": '{"name": "N", "reason": ""}'}
    broken |= {"metrics.jsonl": '{"epoch": 0, "train_loss": 1, "N": 1}', "attacks/fgsm.json": '{"version": 1, "N": 0}'}
    file.parent.mkdir(exist_ok=True)
    file.write_text(broken[where].replace("N", "a\\ud800b").replace('"seed"', '"\\ud800": 0, "seed"', 1))
    with pytest.raises(UserError, match="encode character"):
        page.page(results.load_results(tmp_path), results.load_failed(tmp_path))


def test_a_record_that_the_catalogue_has_no_place_for_is_not_dropped() -> None:
    placed = run("K4", 1)
    stopped = replace(placed, record=placed.record.model_copy(update={"status": "interrupted"}))
    for one in (run("K4-of-old", 1), stopped):
        text = page.page([one, *(run("H5", seed) for seed in (1, 2))])
        _, *lines = protocol.list_groups([one])
        assert len(lines) == 1
        assert f'<th scope="row">{lines[0][0]}</th>' in text.split("Records of no study</h2>")[1]
    assert "Records of no study</h2>" not in page.page([run("K4", 1)])


def test_failed_runs_are_counted_and_listed() -> None:
    text = page.page(SOME, [Failed("K4 seed 2", "out of memory"), Failed("K4 seed 3", "killed")])
    assert "K4 seed 2: out of memory" in text
    assert "<h3>2 runs failed</h3>" in text
    line_of_compute = r'<th scope="row">failed[^<]*</th><td class="number">'
    assert re.search(f"{line_of_compute}2</td>", text)
    assert not re.search(line_of_compute, some_page())


def test_every_table_says_what_it_is_and_every_header_what_it_is_of() -> None:
    text = page.page(SOME, [Failed("K4 seed 2", "out of memory")])
    tables = re.findall(r"<table.*?</table>", text, flags=re.DOTALL)
    assert len(tables) > 8
    for table in tables:
        assert "aria-label=" in table.split(">")[0] or "<caption>" in table
        body = table.split("<tbody")[1]
        assert all('scope="col"' in cell for cell in re.findall(r"<th\b[^>]*>", table.split("<tbody")[0]))
        assert all('scope="row"' in cell for cell in re.findall(r"<th\b[^>]*>", body))
        assert body.count('scope="row"') == len(re.findall(r"<tr\b", body)), "one a row"


def test_no_two_folds_are_called_the_same() -> None:
    text = page.page([*SOME, run("K4", 1, preset="gpu", metrics=AUDITED), run("H5", 1, preset="gpu")])
    names = [re.sub(r"<[^>]*>", "", name) for name in re.findall(r"<summary>(.*?)</summary>", text)]
    assert len(names) > 500
    assert len(names) == len(set(names))
    assert {"source and doubts of K4 at preset cpu", "source and doubts of K4 at preset gpu"} <= set(names)


def test_the_navigation_leads_to_every_section() -> None:
    for runs in (SOME, [], SOME[1:4]):
        text = page.page(runs)
        led = re.findall(r'href="#([^"]+)"', text.split("<nav")[1].split("</nav>")[0])
        assert led == re.findall(r'<section id="([^"]+)">', text)
    assert {"masks", "others"} <= set(re.findall(r'<section id="([^"]+)">', some_page()))


def test_a_small_spread_is_not_rounded_away() -> None:
    def losses(step: float) -> tuple[Row, ...]:
        return tuple(metrics_row(epoch=i, train_loss=1 + (-1) ** i * step) for i in range(4))

    steps = {"SEED-cifar3-batchout": 0.0601, "SEED-cifar3-none": 0.06}
    of = [
        run(name, s, metrics=losses(step + 0.001 * s), preset="robust") for name, step in steps.items() for s in (1, 2)
    ]
    row = page.page(of).split("BatchOut makes training on three classes more volatile.", 1)[1].split("</tr>")[0]
    assert "SEED-cifar3-batchout 0.1423, SEED-cifar3-none 0.1420; by seed 1: +0.00023, 2: +0.00023" in row
    assert 'data-name="measured">+0.00023, n = 2<' in row


# --- the commands of runs outside a study -----------------------------------------------------------------------------


def flags_in(record: Record) -> dict[str, Any]:
    """Return the settings in a record, without the places of the images."""
    return {name: value for name, value in record.config.items() if "data" not in name}


def test_runs_of_no_study_are_repeated_by_the_flags_of_their_records() -> None:
    runs = results.load_results(RESULTS / "cifar10-jpeg")
    text = page.page(runs).split("The commands that repeat them")[1].split("</details>")[0]
    commands = [unescape(command) for command in re.findall(r"<code>(perturblab train [^<]*)</code>", text)]
    assert len(commands) == 3, "one a group of seeds"
    first = [run.record for run in runs if run.record.seed == 1]
    for command in commands:
        config = config_file.training_config(main._parser().parse_args(shlex.split(command)[1:]))
        said = config.model_dump(mode="json")
        assert config.dataset_train == "CIFAR10"
        assert sum({k: said[k] for k in record.config if "data" not in k} == flags_in(record) for record in first) == 1
        assert config.manual_seed == 1
    assert text.count("seeds 1, 2, 3") == 3


def test_a_config_that_cannot_be_typed_gets_no_command() -> None:
    for config in ({"lr": 0.1}, {"net_type": "a\nb"}, {"dataset_train": "x"}):
        record = make(1).model_copy(update={"config": config})
        record = record.model_copy(update={"data": record.data.model_copy(update={"recognised": ""})})
        text = page.page([Result(record)])
        assert "cannot be given" in text


def test_markdown_is_what_was_measured_and_nothing_else() -> None:
    text = claims_table.claims_markdown(SOME, "dispute")
    assert (
        "| Noise gains less than 1 point over the same net of 1x1 convolutions without it. | below +1 | cpu |" in text
    )
    assert "K4: experiment 4" not in text, "figures are not tagged dispute"
    assert "not comparable at this preset" in claims_table.claims_markdown(SOME, "pnn")
    assert "lbcnn" in claims_table.claims_markdown(SOME, "lbcnn")
    assert claims_table.claims_markdown([], "lbcnn") == claims_table.claims_markdown([])
    shown = next(line for line in claims_table.claims_markdown(SOME, "pnn").splitlines() if line.startswith("| K4: "))
    assert re.search(in_order("48.50 [48.50, 48.50], n = 3 ; test ; exact last epoch 50."), shown)
    assert re.search(in_order("], +4.80 best test |"), shown), "55 there, 50.2 after the last"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for of in SOME[1:7]:
        study = of.record.study
        assert study is not None
        place = tmp_path / "results" / study.preset / study.setup / f"seed-{of.record.seed}"
        place.mkdir(parents=True)
        (place / "record.json").write_text(of.record.model_dump_json())
        (place / "metrics.jsonl").write_text(metrics_text(of.metrics))
    return tmp_path / "results"


def test_the_command_writes_the_page_and_says_the_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report", str(folder), "-o", str(tmp_path / "out" / "page.html")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Does noise help")
    assert "6 records; open " in said
    assert (tmp_path / "out" / "page.html").read_text() == page.page(results.load_results(folder))


def test_the_command_writes_between_markers(folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("a\n<!-- results:begin -->\nold\n<!-- results:end -->\nb\n")
    command = ["report", str(folder), "--markdown", "--tag", "dispute", "--into", str(document)]
    assert main.main(command) == 0
    text = document.read_text()
    assert text.startswith("a\n<!-- results:begin -->\n| Claim |")
    assert text.endswith("<!-- results:end -->\nb\n")
    assert main.main(command) == 0
    assert document.read_text() == text


def test_committed_records_make_a_page() -> None:
    text = page.page(list(committed()), results.load_failed(RESULTS))
    assert Reader(text).open == []
    assert len(text) < 8_000_000
