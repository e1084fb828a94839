"""What an attack on a run meets: the net in the mode asked for, the images, and what tells them apart in records."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perturblab.attacks import masking
from perturblab.attacks.pixels import Frozen, to_pixels
from perturblab.attacks.registry import Effort
from perturblab.errors import UserError
from perturblab.layers.inference import ActiveBatchOut, InferenceBatchOut
from perturblab.layers.partners import BY_CLASS
from perturblab.records.attack_config import AttackConfig
from perturblab.records.attack_names import ACTIVE, AT_INFERENCE
from perturblab.records.flags import FEWEST
from perturblab.records.paths import RunFolder
from perturblab.runs import open
from perturblab.runs.run import Run
from perturblab.seeding import stream
from perturblab.system.terminal import Show

_LOOKED_AT = 64  # images that show whether a net is random
_REFERENCES = 1000  # training images among which BatchOut at inference draws


@dataclass
class Target:
    """What is attacked.

    Args:
        folder: of the run.
        model: from images in [0, 1] to logits, in eval mode.
        twin: what `perturblab.attacks.Frozen` freezes of a random net: its draw does not depend on the batch.
        x: (N, C, H, W) in [0, 1].
        y: int64 (N,).
        subset: which images these are, as a hash.
        weights: of the net, as a hash.
        source: the net whose images are transferred.
        source_weights: its weights, as a hash.
        effort: of the attacks.
        config: what was asked for.
        random: the model's answers differ from pass to pass.
        mode: how BatchOut takes part in evaluation; empty where it is the identity, as it should be.
        paths: what attacks by iterations gave at every cap.
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
    mode: str = ""
    paths: dict[str, list[Tensor]] = field(default_factory=dict)


def make_target(run: Run, config: AttackConfig, show: Show) -> Target:
    """Get a run ready for an attack.

    Args:
        run: a trained one.
        config: what was asked for.
        show: where progress goes.

    Returns:
        The target, whose images are the same for every run of a data set.

    Raises:
        UserError: no such source, a mode that the net does not have, or images too few to be checked.
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
    model, twin, mode = _in_mode(run, config, x)
    # Two passes over a few images may draw the same by chance; BatchOut in evaluation is random by construction.
    is_random = bool(mode) or masking.is_random(model, x[:_LOOKED_AT])
    source = None if config.source is None else _source(run, config, x, show)
    effort = Effort(
        steps=config.steps,
        step_size=config.step_size,
        restarts=config.restarts,
        queries=config.queries,
        draws=config.draws if is_random else 1,
        early_stop=not is_random,
    )
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
        effort=effort,
        config=config,
        random=is_random,
        mode=mode,
    )


def changes(config: AttackConfig) -> dict[str, Any]:
    """Say what differs from the run's own flags when it is opened for an attack.

    Args:
        config: what was asked for.

    Returns:
        For `perturblab.runs.open.trained_run`.
    """
    found: dict[str, Any] = {"device": config.device}
    return found if config.dataroot is None else found | {"dataroot": str(Path(config.dataroot).absolute())}


def _in_mode(run: Run, config: AttackConfig, x: Tensor) -> tuple[nn.Module, nn.Module, str]:
    """The net, what is frozen of it, and the name of its mode."""
    net = run.in_pixels.eval()
    asked = [flag for flag in ("batchout_in_eval", "inference_batchout") if getattr(config, flag)]
    said = " and ".join(f"--{flag.replace('_', '-')}" for flag in asked)
    if len(asked) > 1:
        raise UserError(f"{said} given, two ways to use BatchOut; drop one")
    if asked and not run.mixings:
        raise UserError(f"{said} given, but {run.folder} was trained without BatchOut; drop it")
    if config.batchout_in_eval:
        if any(mixing.partners in BY_CLASS for mixing in run.mixings.values()):
            raise UserError(f"{said} given, but the partners go by class, and evaluation has no labels; drop it")
        # Its partners lie within the batch, and attack and verdict see other batches: the frozen twin has one partner.
        one = InferenceBatchOut(net, x, draws=1, generator=stream(config.manual_seed, "frozen twin"))
        return ActiveBatchOut(net), one, f"{ACTIVE}, a published mistake"
    if config.inference_batchout:
        rows = torch.randperm(len(run.training.labels), generator=stream(0, "references"))[:_REFERENCES]
        references = to_pixels(run.training.images[rows]).to(x)
        draws = stream(config.manual_seed, "inference")
        model = InferenceBatchOut(net, references, draws=config.inference_batchout, generator=draws)
        return model, model, f"{AT_INFERENCE}, beside {config.inference_batchout} training images"
    return net, net, ""


def _source(run: Run, config: AttackConfig, x: Tensor, show: Show) -> nn.Module:
    other, _ = open.trained_run(Path(str(config.source)), show, changes(config))
    if other.images.hashes["test"] != run.images.hashes["test"]:
        raise UserError(f"--source {config.source} was trained on other images than {run.folder}; choose another")
    if RunFolder(other.folder).weights_hash() == RunFolder(run.folder).weights_hash():
        raise UserError(f"--source {config.source} has the weights of {run.folder} itself; choose another run")
    source = other.in_pixels.eval()
    return Frozen(source) if masking.is_random(source, x[:_LOOKED_AT]) else source
