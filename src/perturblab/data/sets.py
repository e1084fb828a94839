"""Images with labels in memory: the two values, their checks, and choosing from them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from perturblab.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called as ``progress(text, done, total)`` while something slow goes on."""


def silent(_text: str, _done: int, _total: int) -> None:
    """A `Progress` that reports nothing."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Args:
        images: uint8, (N, C, H, W).
        labels: int64, (N,); indices into the classes of the data set.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """How many images."""
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        """The images at some positions.

        Args:
            index: int64, (K,).

        Returns:
            A split of K images, in the order of ``index``.
        """
        return Split(self.images[index], self.labels[index])


class Decoded(NamedTuple):
    """What a reader returns: the two splits and the classes their labels count."""

    train: Split
    test: Split
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ImageData:
    """A checked data set in memory.

    Args:
        name: the recognised data set ("CIFAR10", "MNIST", ...), or "" when it is none of the known ones.
        display: how to call it in front of people: "CIFAR-10 (JPEG copy)", or the folder's own name.
        classes: class names; label k is ``classes[k]``.
        train: the training images.
        test: the test images.
        hashes: "train" and "test" -> sha256 (hexadecimal) of the decoded images and labels.
    """

    name: str
    display: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    hashes: Mapping[str, str]

    @property
    def image_size(self) -> tuple[int, int, int]:
        """Channels, height and width of one image: (C, H, W)."""
        return image_size(self.train)


def image_size(split: Split) -> tuple[int, int, int]:
    """Channels, height and width of one image.

    Args:
        split: images (N, C, H, W).

    Returns:
        (C, H, W).
    """
    _, channels, height, width = split.images.shape
    return channels, height, width


def content_hash(split: Split) -> str:
    """Name decoded content, whatever file format it came from.

    Args:
        split: images uint8 (N, C, H, W), labels int64 (N,).

    Returns:
        sha256, hexadecimal, of the shape, the pixels in C order and the labels as little-endian int64.
    """
    digest = hashlib.sha256(repr(tuple(split.images.shape)).encode())
    digest.update(split.images.contiguous().numpy().data)
    digest.update(split.labels.contiguous().numpy().astype("<i8").data)
    return digest.hexdigest()


def content_hashes(train: Split, test: Split) -> dict[str, str]:
    """`content_hash` of both splits.

    Args:
        train: images (N, C, H, W).
        test: images (M, C, H, W).

    Returns:
        {"train": ..., "test": ...}.
    """
    return {"train": content_hash(train), "test": content_hash(test)}


def check(decoded: Decoded, where: str) -> Decoded:
    """Refuse what no network could be trained on.

    Args:
        decoded: splits of (N, C, H, W) images.
        where: the source, for the message.

    Returns:
        ``decoded`` itself.

    Raises:
        DataError: one class, an empty split, labels outside the classes, or test images of another size.
    """
    if len(decoded.classes) < 2:
        raise DataError(f"{where} has the one class {', '.join(decoded.classes)!r}; expected at least 2: add a class")
    for text, split in (("train", decoded.train), ("test", decoded.test)):
        _check_split(split, len(decoded.classes), f"the {text} split of {where}")
    _check_sizes(decoded.train, decoded.test, where)
    return decoded


def _check_split(split: Split, nclasses: int, where: str) -> None:
    if not len(split):
        raise DataError(f"{where} is empty; expected at least 1 image: add images to it")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= nclasses:
        wrong = low if low < 0 else high
        raise DataError(f"{where} has the label {wrong}; expected 0 to {nclasses - 1}: correct the labels")


def _check_sizes(train: Split, test: Split, where: str) -> None:
    have, need = image_size(test), image_size(train)
    if have != need:
        raise DataError(
            f"{where} has test images of {sizes(have)}, expected {sizes(need)} as in train: use images of one size"
        )


def sizes(size: Sequence[int]) -> str:
    """A size in words.

    Args:
        size: (C, H, W).

    Returns:
        "CxHxW".
    """
    return "x".join(map(str, size))


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
        raise DataError(other_classes(where, train.classes, test.classes))
    other = test if test.classes == train.classes else select_classes(test, train.classes)
    _check_sizes(train.train, other.test, where)
    display = train.display if train.display == test.display else f"{train.display} / {test.display}"
    hashes = {"train": train.hashes["train"], "test": other.hashes["test"]}
    return replace(train, display=display, test=other.test, hashes=hashes)


def other_classes(where: str, train: Sequence[str], test: Sequence[str]) -> str:
    """The message for train and test that do not have the same classes.

    Args:
        where: the source.
        train: class names of the training split.
        test: class names of the test split.

    Returns:
        One sentence.
    """
    alone = [f"{name!r} only in train" for name in train if name not in test]
    alone += [f"{name!r} only in test" for name in test if name not in train]
    difference = "; ".join(alone[:4]) or f"train in the order {', '.join(train)}, test in the order {', '.join(test)}"
    return f"{where} has other classes in test than in train ({difference}): give both the same classes"


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
    check(Decoded(train, test, chosen), f"{data.display} with the classes {', '.join(chosen)}")
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
