from dataclasses import dataclass, field
from pathlib import Path

from perturblab.records.config import TrainConfig, validated
from perturblab.studies.catalogue.types import Flags

# For the estimate of the time left: passes through the net per attacked image; test and training images of a data set.
_PASSES = {"pgd": 250, "autoattack": 5000, "deepfool": 50, "deepfool-unclipped": 50}


_IMAGES = 10_000, 50_000


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Args:
        setups: of the catalogue that this run stands for: more than one if their flags are identical at this preset.
        preset: name of the size.
        flags: of `perturblab train`, with the seed; `TrainConfig` checks them.
        work: folder of the run, with weights and checkpoint.
        results: folder of the record, one per set-up.
        attack: settings of `perturblab attack`, for a job that attacks the trained run; empty for one that trains it.
        needs: files of other jobs that must exist before it can begin.
    """

    setups: tuple[str, ...]
    preset: str
    flags: Flags
    work: Path
    results: tuple[Path, ...]
    attack: Flags = field(default_factory=dict)
    needs: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The set-up, the seed and the attacks, such as "K4 seed 1"."""
        name = f"{self.setups[0]} seed {self.flags['manual_seed']}"
        return f"{name}: {self.attack['attacks']}" if self.attack else name

    @property
    def config(self) -> TrainConfig:
        """The validated flags."""
        return validated(TrainConfig, dict(self.flags))

    @property
    def nepochs(self) -> int:
        """Epochs of the whole run; an attack counts as the epochs with about as many passes through the net."""
        if not self.attack:
            return int(self.flags["nepochs"])
        radii = sum(eps != "0" for eps in str(self.attack["eps"]).split(","))
        passes = sum(_PASSES.get(name, 1) for name in str(self.attack["attacks"]).split(","))
        return max(1, round(radii * passes * int(self.attack.get("subset", _IMAGES[0])) / _IMAGES[1]))
