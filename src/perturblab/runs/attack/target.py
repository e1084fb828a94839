"""The target of an attack: a trained net, its test images and the hashes that identify both."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from perturblab.attacks import masking
from perturblab.attacks.pixels import Frozen, to_pixels
from perturblab.errors import UserError
from perturblab.layers.inference import ActiveBatchOut, InferenceBatchOut
from perturblab.layers.partners import BY_CLASS
from perturblab.records.attack_config import AttackConfig
from perturblab.records.attack_names import ACTIVE, AT_INFERENCE, AttackName, Effort
from perturblab.records.checks import FEWEST
from perturblab.records.paths import RunFolder
from perturblab.runs import open
from perturblab.runs.run import Run
from perturblab.seeding import stream
from perturblab.system.terminal import Show

_LOOKED_AT = 64  # images that show whether a net is random
_REFERENCES = 1000  # training images among which BatchOut at inference draws


@dataclass
class Target:
    """A net and the images on which it is attacked.

    Args:
        folder: of the run.
        model: from images in [0, 1] to logits, in eval mode.
        twin: the net that `perturblab.attacks.Frozen` freezes where `model` is random; its draw does not depend on the
            batch.
        x: (N, C, H, W) in [0, 1].
        y: int64 (N,).
        subset: hash that tells these images from others.
        weights: hash of the net's weights.
        source: the net whose images are transferred.
        source_weights: hash of the weights of `source`, or of the net itself without one.
        effort: of the attacks.
        config: settings asked for.
        random: the model's answers differ from pass to pass.
        paths: images at every cap of an attack by iterations, by its name.
    """

    folder: Path
    model: nn.Module
    twin: nn.Module
    x: Tensor
    y: Tensor
    subset: str
    weights: str
    source: nn.Module | None
    source_weights: str
    effort: Effort
    config: AttackConfig
    random: bool
    paths: dict[AttackName, list[Tensor]] = field(default_factory=dict)

    def effort_of(self, name: AttackName) -> Effort:
        """Give the effort of one attack.

        A transfer raises the source's loss as far as it goes: images that barely fool the source fool no other net.
        """
        return replace(self.effort, early_stop=False) if name.is_transfer else self.effort


def make_target(run: Run, config: AttackConfig, show: Show) -> Target:
    """Prepare the target of an attack on a run.

    Args:
        run: a trained one.
        config: settings asked for.
        show: where progress goes.

    Returns:
        The target, whose images are the same for every run of a data set.

    Raises:
        UserError: no such source, a mode that the net does not have, or too few images for the checks.
    """
    test = run.images.test
    rows = torch.arange(len(test.labels))
    if config.subset is not None and config.subset < len(rows):
        # Not from the run's seed: every run is judged on the same images.
        rows = torch.randperm(len(rows), generator=stream(0, "attacked images"))[: config.subset].sort().values
    if config.checks and (count := min(config.check_subset, len(rows))) < FEWEST:
        raise UserError(
            f"--check-subset and --subset leave the masking checks {count} images, too few to raise a flag; give both "
            f"at least {FEWEST}, or --no-checks"
        )
    x = to_pixels(test.images[rows]).to(run.device, memory_format=torch.channels_last)  # as in training: faster
    model, twin = _in_mode(run, config, x)
    # Two passes over a few images may draw the same by chance; BatchOut in evaluation is random by construction.
    is_random = bool(config.mode.kind) or masking.is_random(model, x[:_LOOKED_AT])
    source = None if config.source is None else _source(run, config, x, show)
    return Target(
        folder=run.folder,
        model=model,
        twin=twin,
        x=x,
        y=test.labels[rows].to(run.device),
        subset=hashlib.sha256(f"{run.images.hashes['test']} {rows.tolist()}".encode()).hexdigest()[:16],
        weights=RunFolder(run.folder).weights_hash(),
        source=source,
        source_weights=RunFolder(Path(config.source or run.folder)).weights_hash(),
        effort=replace(config.effort, draws=config.draws, early_stop=False) if is_random else config.effort,
        config=config,
        random=is_random,
    )


def changes(config: AttackConfig) -> dict[str, str]:
    """List the flags that differ from the run's own when it is opened for an attack.

    Args:
        config: settings asked for.

    Returns:
        Name -> value, for `perturblab.runs.open.open_trained`.
    """
    folder = {} if config.dataroot is None else {"dataroot": str(Path(config.dataroot).absolute())}
    return {"device": config.device, **folder}


def _in_mode(run: Run, config: AttackConfig, x: Tensor) -> tuple[nn.Module, nn.Module]:
    """Give the net in the mode asked for, and the one that is frozen of it."""
    net = run.in_pixels.eval()
    asked = [flag for flag in ("batchout_in_eval", "inference_batchout") if getattr(config, flag)]
    flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in asked)
    if len(asked) > 1:
        raise UserError(f"{flags} are two ways to use BatchOut; drop one")
    if asked and not run.built.mixings:
        raise UserError(f"{flags} needs BatchOut, but {run.folder} was trained without it; drop the flag")
    if config.mode.kind == ACTIVE:
        if any(mixing.partners in BY_CLASS for mixing in run.built.mixings.values()):
            raise UserError(f"{flags} has no labels to choose the partners of this run by class; drop the flag")
        # Partners lie within the batch, and attack and verdict see other batches: the frozen twin has one partner.
        return ActiveBatchOut(net), InferenceBatchOut(
            net, x, draws=1, generator=stream(config.manual_seed, "frozen twin")
        )
    if config.mode.kind == AT_INFERENCE:
        rows = torch.randperm(len(run.training.labels), generator=stream(0, "references"))[:_REFERENCES]
        references = to_pixels(run.training.images[rows]).to(x)
        draws = stream(config.manual_seed, "inference")
        model = InferenceBatchOut(net, references, draws=config.mode.images, generator=draws)
        return model, model
    return net, net


def _source(run: Run, config: AttackConfig, x: Tensor, show: Show) -> nn.Module:
    other = open.open_trained(Path(str(config.source)), show, changes(config))
    if other.images.hashes["test"] != run.images.hashes["test"]:
        raise UserError(f"--source {config.source} was trained on other images than {run.folder}; choose another")
    if RunFolder(other.folder).weights_hash() == RunFolder(run.folder).weights_hash():
        raise UserError(f"--source {config.source} has the weights of {run.folder} itself; choose another run")
    source = other.in_pixels.eval()
    return Frozen(source) if masking.is_random(source, x[:_LOOKED_AT]) else source
