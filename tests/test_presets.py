"""Presets: what they ask for can be run, is of their size, and is enough for every figure and claim."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders import point
from builders import run as finished
from perturblab.errors import UserError
from perturblab.records.attack_config import AttackConfig
from perturblab.records.attack_names import ACTIVE, AT_INFERENCE
from perturblab.records.config import TrainConfig, validated
from perturblab.records.points import Point
from perturblab.report.readings import value
from perturblab.studies import plan
from perturblab.studies.catalogue import CLAIMS, FIGURES, SETUPS, Setup
from perturblab.studies.presets import PRESETS, Preset
from perturblab.studies.setups import choose_setups, flags_of, is_comparable
from studies import TINY
from told import in_order


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_every_run_of_every_preset_can_be_configured(preset: Preset) -> None:
    found = choose_setups((), preset)
    assert found
    for setup in found:
        flags = flags_of(setup, preset, 3)
        config = validated(TrainConfig, flags)
        assert config.manual_seed == 3
        assert config.nepochs == flags["nepochs"]


def test_every_attack_behind_a_figure_or_claim_is_made_at_the_full_preset() -> None:
    full, seen = PRESETS["full"], 0
    of = [(published.setup, published.measure, published.id) for published in FIGURES.values()]
    of += [(side, r.measure, r.id) for r in CLAIMS.values() for side in (r.left, r.right)]
    for setup, measure, name in of:
        if (measure.metric != "attack" and not measure.mode) or not setup or measure.mode == "inference-vote":
            continue
        made = list[Point]()
        for given in full.attacks_on(setup):
            config = validated(AttackConfig, dict(given))
            modes = {"batchout_in_eval": ACTIVE, "inference_batchout": f"{AT_INFERENCE}, beside 30 training images"}
            settings = {"steps": config.steps, "step_size": config.step_size}
            settings |= next(({"mode": said} for flag, said in modes.items() if getattr(config, flag)), {})
            assert config.eps is not None
            made += [
                point(attack, eps, [1] * (config.subset or 4), norm=norm, settings=settings)
                for attack in config.attacks
                for caps in (attack.startswith("deepfool"),)
                for eps in (config.iterations if caps else config.eps)
                for norm in ("l2" if caps else config.norm,)
            ]
        assert value(finished(setup, 1, points=made), measure) is not None, name
        seen += 1
    assert seen > 300


def test_an_attack_as_published_is_made_at_its_own_radii_only() -> None:
    made = [given for given in PRESETS["full"].attacks_on("BO-mnist-batchout") if "autoattack" in given["attacks"]]
    assert made == [{"attacks": "autoattack", "eps": "0,0.1"}]
    assert PRESETS["full"].attacks_on("K4") == ()
    assert {"attacks": "fgsm,fgsm-normalised", "eps": "0,5/255"} in PRESETS["full"].attacks_on("SEED-cifar10-none")


def test_only_the_published_protocol_is_comparable() -> None:
    for name in ("quick", "cpu", "cpu-all", "gpu"):
        assert not any(is_comparable(setup, PRESETS[name]) for setup in choose_setups((), PRESETS[name]))
    comparable = {s.id for s in choose_setups((), PRESETS["robust"]) if is_comparable(s, PRESETS["robust"])}
    assert comparable == {"BO-mnist-none", "BO-mnist-batchout", "BO-mnist-fgsm-half"}
    for setup in choose_setups((), PRESETS["full"]):
        flags = flags_of(setup, PRESETS["full"], 1)
        assert {name: flags[name] for name in setup.flags} == dict(setup.flags)


@pytest.mark.parametrize(
    ("setup", "preset", "want"),
    [
        ("K1", "quick", {"nfilters": 10, "learning_rate": 1e-2, "nepochs": 12}),
        ("H5", "quick", {"nfilters": 28, "learning_rate": 1e-2, "dataset_train": "digits"}),
        ("K1", "cpu", {"nfilters": 6, "learning_rate": 1e-2, "batch_size": 64}),
        ("K3", "cpu", {"nfilters": 16, "learning_rate": 1e-3}),
        ("A1", "cpu", {"nfilters": 16, "learning_rate": 1e-3, "optim_method": "Adam", "level": 0.1, "code": "up"}),
        ("A1", "gpu", {"nfilters": 128, "nepochs": 30, "batch_size": 512, "precision": "bf16"}),
        ("A1", "full", {"nfilters": 128, "nepochs": 450, "batch_size": 10, "learning_rate": 1e-4}),
        ("K4", "full", {"nfilters": 128, "nepochs": 150, "batch_size": 16, "learning_rate": 1e-3}),
        ("L3", "cpu-all", {"nfilters": 8, "nweights": 16, "nepochs": 5, "batch_size": 256, "learning_rate": 1e-2}),
        ("L3", "gpu", {"nfilters": 8, "nepochs": 30, "batch_size": 256, "learning_rate": 1e-2}),
        ("U3", "cpu-all", {"nepochs": 5, "batch_size": 64, "learning_rate": 1e-3}),
        ("L1-cifar", "cpu-all", {"nfilters": 16, "depth": 4, "batch_size": 64, "learning_rate": 1e-3}),
    ],
)
def test_sizes_are_those_of_the_preset(setup: str, preset: str, want: dict[str, Any]) -> None:
    flags = flags_of(SETUPS[setup], PRESETS[preset], 1)
    assert {name: flags[name] for name in want} == want


def test_budgets_are_equal_for_all_set_ups_of_a_preset() -> None:
    for name in ("quick", "cpu", "cpu-all", "gpu"):
        flags = [flags_of(setup, PRESETS[name], 1) for setup in choose_setups((), PRESETS[name])]
        assert len({(f["nepochs"], f["batch_size"] if name != "cpu-all" else 0) for f in flags}) == 1


def test_ids_may_be_set_ups_figures_or_relations() -> None:
    assert [setup.id for setup in choose_setups(["H5", "K4", "H5"], TINY)] == ["H5", "K4"]
    assert [setup.id for setup in choose_setups(["R-noise"], TINY)] == [CLAIMS["R-noise"].left, CLAIMS["R-noise"].right]
    with pytest.raises(UserError, match=in_order("'K44' ; K4")):
        choose_setups(["K44"], TINY)
    with pytest.raises(UserError, match=in_order("H1 ; perturblab show H1")):
        choose_setups(["H1"], TINY)
    with pytest.raises(UserError, match=in_order("R-no-exchange ; perturblab show R-no-exchange")):
        choose_setups(["R-no-exchange"], TINY)


def test_presets_of_one_size_share_their_records(tmp_path: Path) -> None:
    small, large = PRESETS["cpu"], PRESETS["cpu-all"]
    assert (small.folder, large.folder) == ("cpu", "cpu")
    for setup in choose_setups((), large):
        assert flags_of(setup, large, 1) == flags_of(setup, small, 1)
    at = {name: tmp_path / name for name in ("results", "work")}
    jobs = {
        job.name: job
        for job in plan.plan(choose_setups((), large), large, None, results=at["results"], work=at["work"])
        if "K4" in job.setups
    }
    for job in plan.plan([SETUPS["K4"]], small, (1, 2, 3), results=at["results"], work=at["work"]):
        assert job.results[0] in jobs[job.name].results
        assert job.flags == jobs[job.name].flags
    for preset in PRESETS.values():
        assert preset.folder in PRESETS


def test_seeds_of_the_preset_are_those_of_each_set_up(tmp_path: Path) -> None:
    more = replace(TINY, seeds=1, more_seeds={"H5": 3})
    jobs = plan.plan([SETUPS["K4"], SETUPS["H5"]], more, None, results=tmp_path, work=tmp_path)
    assert [job.name for job in jobs] == ["K4 seed 1", "H5 seed 1", "H5 seed 2", "H5 seed 3"]


def test_a_set_up_without_a_run_has_a_reason() -> None:
    assert all(isinstance(setup, Setup) for setup in SETUPS.values())
    assert all(setup.flags or setup.missing for setup in SETUPS.values())
