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
    """Train on one data set, test on another.

    Args:
        train: gives the training split, the name (and with it schedule and normalisation) and the class order.
        test: gives the test split; its labels are renumbered where it lists the same classes in another order.

    Returns:
        The combined data set; its display name tells both where they differ.

    Raises:
        DataError: the two have other classes or another image size.
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
    """Keep some classes, renumbered 0, 1, ... in the order given.

    Args:
        data: the data set; the result keeps its name, so its normalisation and augmentation stay the same.
        names: class names, at least 2.

    Returns:
        The images of these classes in stored order, (K, C, H, W).

    Raises:
        DataError: a class there is not, one given twice, fewer than 2, or no image left.
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
    """Draw images so that every class keeps its share (largest remainder; ties go to the lower label).

    Args:
        split: images (N, C, H, W).
        size: how many to keep, 1 to N.
        generator: a CPU generator; draws one permutation per class, in label order.

    Returns:
        ``size`` images in stored order.

    Raises:
        DataError: ``size`` is below 1 or above N.
    """
    if not 1 <= size <= len(split):
        raise DataError(f"a subset of {size} images is asked for; expected 1 to {len(split)}, the images there are")
    return split.take(_drawn(split, size, generator).nonzero().flatten())


def hold_out(split: Split, size: int, generator: torch.Generator) -> tuple[Split, Split]:
    """Set images aside for validation, every class with its share.

    Args:
        split: images (N, C, H, W).
        size: how many to hold out, 1 to N - 1.
        generator: a CPU generator; draws one permutation per class, in label order.

    Returns:
        (the rest, the ``size`` held out), disjoint, both in stored order.

    Raises:
        DataError: ``size`` is below 1, or nothing would be left to train on.
    """
    if not 1 <= size < len(split):
        raise DataError(
            f"{size} images are to be held out; expected 1 to {len(split) - 1}, so that 1 of {len(split)} is left"
        )
    held = _drawn(split, size, generator)
    return split.take((~held).nonzero().flatten()), split.take(held.nonzero().flatten())


def _drawn(split: Split, size: int, generator: torch.Generator) -> Tensor:
    """Boolean (N,): which images are drawn."""
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
        Images to take per class; the sum is ``size`` and each is its exact share rounded down or up.
    """
    total = sum(counts)
    quotas = [size * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda k: -(size * counts[k] % total))
    for k in by_remainder[: size - sum(quotas)]:
        quotas[k] += 1
    return quotas
