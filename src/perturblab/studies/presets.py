"""Presets: the same set-ups at another size, and the changes that this makes to the published protocol."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from perturblab.records.attack_names import ACTIVE, AttackName
from perturblab.studies.catalogue import CLAIMS, FIGURES, SETUPS, Measure
from perturblab.studies.catalogue.types import Flags


@dataclass(frozen=True)
class Preset:
    """A size of set-ups; budgets are fixed in advance and the same for every set-up.

    Args:
        name: as on the command line.
        about: one line.
        setups: run by default.
        seeds: runs of each, seeds 1, 2, ...
        changes: differences from the published protocol, one sentence each; the report lists them.
        width: factor on the number of filters.
        rate: factor on the learning rate, for the larger batch.
        flags: replace those of every set-up.
        more_seeds: set-up -> its number of runs, if larger.
        special: beginning of a set-up's id -> flags that replace those of such set-ups.
        attacks: beginning of a set-up's id -> settings of `perturblab attack`, one per command, for trained runs;
            "source" there names a set-up, and means its run of another seed.
        only: the set-ups that it includes; empty for all.
        size: the preset of the same size, with which it shares its records; its own name by default.
        as_published: add every attack under which a figure or a claim of a set-up was published.
    """

    name: str
    about: str
    setups: tuple[str, ...] = ()
    seeds: int = 3
    changes: tuple[str, ...] = ()
    width: float = 1.0
    rate: float = 1.0
    flags: Flags = field(default_factory=dict)
    more_seeds: Mapping[str, int] = field(default_factory=dict)
    special: Mapping[str, Flags] = field(default_factory=dict)
    attacks: Mapping[str, tuple[Flags, ...]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    size: str = ""
    as_published: bool = False

    @property
    def folder(self) -> str:
        """The name of the folder of its records."""
        return self.size or self.name

    def seeds_of(self, setup: str) -> range:
        """The seeds of a set-up, by its id."""
        return range(1, self.more_seeds.get(setup, self.seeds) + 1)

    def attacks_on(self, setup: str) -> tuple[Flags, ...]:
        """Settings of the attacks on a set-up, by its id; none for most."""
        named = (attack for start, attacks in self.attacks.items() if setup.startswith(start) for attack in attacks)
        return *named, *(_published_attacks().get(setup, ()) if self.as_published else ())


DECIDING = ("K4", "H5", "A1", "A1-level-0")
_CONTROLS = ("K1", "K3", "K3-level-0", "K5", "K7", "A1-cnn")
_OTHERS = ("BO-", "R1-", "R2-", "SEED-")  # not of the dispute about noise
_PERTURBATIVE = tuple(name for name, setup in SETUPS.items() if not setup.missing and not name.startswith(_OTHERS))
_ON_CIFAR10 = tuple(
    name
    for name in _PERTURBATIVE
    if SETUPS[name].flags["dataset_train"] == "CIFAR10" and not name.startswith(("L1-", "L3"))
)
_SHALLOW = {"nfilters": 16, "nweights": 32, "depth": 4}
_ON_MNIST = {  # small and short as published: nothing to scale
    "L3": {"nfilters": 8, "batch_size": 256, "learning_rate": 1e-2},
    "U3": {"learning_rate": 1e-3},
}
_STAYS = "L3 and U3, small nets on MNIST, keep the published width, batch and learning rate"

_QUICK = Preset(
    "quick",
    "the dispute on 8x8 digits, three minutes on two cores",
    setups=("K1", "K4", "H5", "K3", "A1", "A1-level-0"),
    changes=(
        "1,200 digits of 8x8 pixels instead of CIFAR-10, without augmentation",
        "28/128 of the published width",
        "12 epochs instead of 150 or 450, batch 32, ten times the learning rate",
    ),
    width=28 / 128,
    rate=10.0,
    flags={"dataset_train": "digits", "batch_size": 32, "nepochs": 12, "audit": True},
    only=_ON_CIFAR10,
)
_CPU = Preset(
    "cpu",
    "the deciding nets and their controls on all CIFAR-10 images, at an eighth of the width",
    setups=(*DECIDING, *_CONTROLS),
    changes=(
        "1/8 of the published width",
        "5 epochs instead of 150 or 450, the learning rate annealed by a cosine over them",
        "batch 64 instead of 5 to 20, with ten times the learning rate",
        _STAYS,
        "experiment 3 and what is made from it keep a tenth of the others' learning rate, as published, which five "
        "epochs do not make up for",
        "the number of masks and of shared masks is as published, so that they weigh more among the parameters",
        "filters are rounded to whole ones: 3x3 nets have 6 to 9 % more parameters than nets with noise (K7: 29 %), "
        "not 6 % fewer",
        "local binary convolution: 4 blocks of 16 filters and 32 anchors",
    ),
    width=1 / 8,
    rate=10.0,
    flags={"batch_size": 64, "nepochs": 5, "optimizer_schedule": "cosine", "audit": True},
    more_seeds=dict.fromkeys(DECIDING, 10),
    special={"L1-": _SHALLOW, **_ON_MNIST},
    only=_PERTURBATIVE,
)
_GPU = Preset(
    "gpu",
    "the published width, a large batch and 30 epochs",
    setups=DECIDING,
    changes=(
        "30 epochs instead of 150 or 450, the learning rate annealed by a cosine over them",
        "batch 512 instead of 5 to 20, with ten times the learning rate, in bf16",
        _STAYS,
        "experiment 3 and what is made from it keep a tenth of the others' learning rate, as published",
    ),
    rate=10.0,
    flags={**_CPU.flags, "batch_size": 512, "nepochs": 30, "precision": "bf16"},
    special={"U3": {**_ON_MNIST["U3"], "batch_size": 64}, "L3": _ON_MNIST["L3"]},
    only=_PERTURBATIVE,
)
_TENTHS, _PIXELS = "0,0.1,0.2,0.3,0.4,0.5", "0,1/255,2/255,3/255,4/255,5/255,6/255,7/255,8/255"
_QUICKLY: Flags = {"subset": 1000, "checks": False}
_IN_EVAL: Flags = {"checks": False, "draws": 1, "verdicts": 3, "batchout_in_eval": True}
_ROBUST = Preset(
    "robust",
    "BatchOut, adversarial training and neither: MNIST, CIFAR-10 and three of its classes, attacked",
    setups=(
        *(f"BO-{data}-{arm}" for data in ("mnist", "cifar") for arm in ("none", "batchout", "fgsm-half")),
        *("SEED-cifar3-none", "SEED-cifar3-batchout"),
    ),
    changes=(
        "MNIST: none in training against the re-implementation, since the paper states no recipe",
        "PGD and AutoAttack, and DeepFool in colour, on the same 1,000 of the test images",
        "CIFAR-10, the paper's net: 10 epochs instead of 300, in bf16",
        "three classes, the ResNet of the trials: (3, 3, 3) blocks instead of (9, 9, 9), in bf16",
    ),
    flags={"audit": True},
    special={
        "BO-cifar": {"nepochs": 10, "precision": "bf16", "audit": False},
        "SEED-": {"blocks": 3, "precision": "bf16", "audit": False},
    },
    attacks={
        "BO-mnist": (
            {"attacks": "fgsm,deepfool,deepfool-unclipped", "eps": _TENTHS, "checks": False},
            {"attacks": "fgsm,pgd", "eps": _TENTHS, "subset": 1000, "source": "BO-mnist-none"},
            {"attacks": "autoattack", "eps": "0,0.3,0.1", **_QUICKLY},
        ),
        "BO-mnist-batchout": ({"attacks": "fgsm,fgsm-unclipped", "eps": _TENTHS, **_IN_EVAL},),
        "BO-cifar": (
            {"attacks": "fgsm", "eps": _PIXELS, "checks": False},
            {
                "attacks": "fgsm,deepfool,deepfool-unclipped,pgd",
                "eps": _PIXELS,
                "subset": 1000,
                "source": "BO-cifar-none",
            },
            {"attacks": "autoattack", "eps": "0,5/255", **_QUICKLY},
        ),
        "SEED-cifar3": (
            {"attacks": "fgsm,fgsm-normalised", "eps": _PIXELS, "checks": False},
            {"attacks": "fgsm,pgd", "eps": "0,1/255,3/255,5/255,8/255", "subset": 1000, "source": "SEED-cifar3-none"},
            {"attacks": "autoattack", "eps": "0,5/255", **_QUICKLY},
        ),
    },
)
PRESETS = {
    preset.name: preset
    for preset in (
        _QUICK,
        _CPU,
        replace(
            _CPU,
            name="cpu-all",
            about="every perturbative set-up at the size of cpu, but those on SVHN, whose images are not at hand",
            setups=tuple(name for name in _PERTURBATIVE if SETUPS[name].flags["dataset_train"] != "SVHN"),
            more_seeds={},
            size="cpu",
        ),
        _ROBUST,
        _GPU,
        Preset(
            "full",
            "as published, epoch for epoch, and attacked as published",
            setups=DECIDING,
            flags={"audit": True},
            as_published=True,
        ),
    )
}
_COSTLY = ("pgd", "autoattack")  # not at more radii than their own


@functools.cache
def _published_attacks() -> dict[str, tuple[Flags, ...]]:
    """Collect the attacks behind all figures and claims by set-up: one per norm, effort, mode and set of images."""
    read = [(published.setup, published.measure) for published in FIGURES.values()]
    for claim in CLAIMS.values():
        read.append((claim.left, claim.measure))
        read += [(side, claim.right_measure or claim.measure) for side in claim.rivals or (claim.right,)]
    attacks: dict[str, dict[tuple[str, str], tuple[set[str], set[float]]]] = {}
    for setup, measure in read:
        settings = _settings_of(measure)
        if setup and settings is not None:
            name = measure.attack or "fgsm"
            key = json.dumps(settings), name if name in _COSTLY else ""
            names, radii = attacks.setdefault(setup, {}).setdefault(key, (set(), {0.0}))
            names.add(name)
            radii |= set() if AttackName.parse(name).kind.by_iterations else {measure.eps}  # a cap is not a radius
    return {
        setup: tuple(
            {"attacks": ",".join(sorted(names)), "eps": ",".join(map(_radius, sorted(radii))), **json.loads(settings)}
            for (settings, _), (names, radii) in sorted(efforts.items())
        )
        for setup, efforts in attacks.items()
    }


def _settings_of(measure: Measure) -> Flags | None:
    """Give the settings of `perturblab attack` for a measure, without name and radius; None if it cannot measure it."""
    if (measure.metric != "attack" and not measure.mode) or measure.mode == "inference-vote":
        return None
    evaluation, settings = measure.evaluation, dict[str, object]()
    settings |= {"checks": False, "draws": 1} if evaluation.kind else {}
    settings |= {"verdicts": 3} if evaluation.kind == ACTIVE else {}
    settings |= evaluation.flags
    if measure.norm != "linf" and not AttackName.parse(measure.attack).kind.by_iterations:
        settings["norm"] = measure.norm
    settings |= {name: value for name, value in (("steps", measure.steps), ("subset", measure.subset)) if value}
    if measure.mode == "step eps/30":
        settings |= {"step_size": measure.eps / 30, "restarts": 1}
    return settings


def _radius(eps: float) -> str:
    of_255 = round(255 * eps)
    return f"{of_255}/255" if 0 < of_255 < 25 and abs(255 * eps - of_255) < 1e-9 else f"{eps:g}"
