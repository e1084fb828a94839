"""Choosing from a data set: classes, stratified subsets, images for validation, another test set."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from perturblab.data.sets import (
    Decoded,
    ImageData,
    Split,
    check_decoded,
    check_same_size,
    class_mismatch,
    content_hashes,
)
from perturblab.errors import DataError


def combine(train: ImageData, test: ImageData) -> ImageData:
    """Combine the training images of one data set with the test images of another.

    Args:
        train: provides the training split, the name (hence schedule and normalisation) and the class order.
        test: provides the test split; its labels are renumbered if its classes have another order.

    Returns:
        The combined data set; its display name has both names if they differ.

    Raises:
        DataError: the two have different classes or image sizes.
    """
    where = f"{train.display} with {test.display}"
    if set(train.classes) != set(test.classes):
        raise DataError(class_mismatch(where, train.classes, test.classes))
    other = test if test.classes == train.classes else select_classes(test, train.classes)
    check_same_size(train.train, other.test, where)
    display = train.display if train.display == test.display else f"{train.display} / {test.display}"
    hashes = {"train": train.hashes["train"], "test": other.hashes["test"]}
    return replace(train, display=display, test=other.test, hashes=hashes)


def select_classes(data: ImageData, names: Sequence[str]) -> ImageData:
    """Keep some classes and renumber them 0, 1, ... in the order of ``names``.

    Args:
        data: the data set; its name, and with it normalisation and augmentation, is kept.
        names: class names, at least 2.

    Returns:
        The images of these classes in stored order, (K, C, H, W).

    Raises:
        DataError: an unknown class, one given twice, fewer than 2, or a split without images.
    """
    chosen = tuple(name.strip() for name in names)
    _check_choice(chosen, data)
    if chosen == data.classes:
        return data
    train, test = (_relabelled(split, data.classes, chosen) for split in (data.train, data.test))
    check_decoded(Decoded(train, test, chosen), f"{data.display} with the classes {', '.join(chosen)}")
    display = data.display if len(chosen) == len(data.classes) else f"{data.display}, {len(chosen)} classes"
    return replace(data, display=display, classes=chosen, train=train, test=test, hashes=content_hashes(train, test))


def _check_choice(chosen: tuple[str, ...], data: ImageData) -> None:
    unknown = [name for name in chosen if name not in data.classes]
    if unknown:
        raise DataError(f"{data.display} has no class {unknown[0]!r}; its classes are {', '.join(data.classes)}")
    if len(set(chosen)) < max(2, len(chosen)):
        raise DataError(f"classes are {','.join(chosen)!r}; expected at least 2 different ones of {data.display}")


def _relabelled(split: Split, classes: Sequence[str], chosen: Sequence[str]) -> Split:
    new = torch.full((len(classes),), -1)
    for label, name in enumerate(chosen):
        new[classes.index(name)] = label
    labels = new[split.labels]
    keep = labels >= 0
    return Split(split.images[keep], labels[keep])


def stratified_subset(split: Split, size: int, generator: torch.Generator) -> Split:
    """Draw images; every class keeps its share (largest remainder; ties go to the lower label).

    Args:
        split: images (N, C, H, W).
        size: number of images to keep, 1 to N.
        generator: a CPU generator; draws one permutation per class, in label order.

    Returns:
        ``size`` images in stored order.

    Raises:
        DataError: ``size`` is below 1 or above N.
    """
    if not 1 <= size <= len(split):
        raise DataError(f"cannot draw a subset of {size} images; expected 1 to {len(split)}, the number of images")
    return split.take(_draw(split, size, generator).nonzero().flatten())


def hold_out(split: Split, size: int, generator: torch.Generator) -> tuple[Split, Split]:
    """Hold out images for validation, from every class its share.

    Args:
        split: images (N, C, H, W).
        size: number of images to hold out, 1 to N - 1.
        generator: a CPU generator; draws one permutation per class, in label order.

    Returns:
        (the rest, the ``size`` held out), disjoint, both in stored order.

    Raises:
        DataError: ``size`` is below 1, or no image would remain for training.
    """
    if not 1 <= size < len(split):
        raise DataError(f"cannot hold out {size} of {len(split)} images; expected 1 to {len(split) - 1}")
    held = _draw(split, size, generator)
    return split.take((~held).nonzero().flatten()), split.take(held.nonzero().flatten())


def _draw(split: Split, size: int, generator: torch.Generator) -> Tensor:
    """Draw images; give a boolean mask (N,)."""
    drawn = torch.zeros(len(split), dtype=torch.bool)
    counts = torch.bincount(split.labels).tolist()
    for label, quota in enumerate(shares(counts, size)):
        order = torch.randperm(counts[label], generator=generator)
        drawn[(split.labels == label).nonzero().flatten()[order[:quota]]] = True
    return drawn


def shares(counts: Sequence[int], size: int) -> list[int]:
    """Divide ``size`` in proportion to ``counts``, in whole numbers by largest remainder.

    Args:
        counts: images per class.
        size: at most their sum.

    Returns:
        Images per class; their sum is ``size``, and each is the exact share rounded down or up.
    """
    total = sum(counts)
    quotas = [size * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda k: -(size * counts[k] % total))
    for k in by_remainder[: size - sum(quotas)]:
        quotas[k] += 1
    return quotas
