"""Images with labels in memory: the values and their checks."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from perturblab.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called as ``progress(text, done, total)`` during slow work."""


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
        """Count the images."""
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        """Take the images at some positions.

        Args:
            index: int64, (K,).

        Returns:
            A split of K images (K, C, H, W), in the order of ``index``.
        """
        return Split(self.images[index], self.labels[index])


class Decoded(NamedTuple):
    """The result of a reader: the two splits and the class names that their labels index."""

    train: Split
    test: Split
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ImageData:
    """A checked data set in memory.

    Args:
        name: the recognised data set ("CIFAR10", "MNIST", ...), or "" for an unknown one.
        display: its name in texts and figures: "CIFAR-10 (JPEG copy)", or the name of the folder.
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
        """The channels, height and width of one image: (C, H, W)."""
        return image_size(self.train)


def image_size(split: Split) -> tuple[int, int, int]:
    """Give the channels, height and width of one image.

    Args:
        split: images (N, C, H, W).

    Returns:
        (C, H, W).
    """
    _, channels, height, width = split.images.shape
    return channels, height, width


def content_hash(split: Split) -> str:
    """Hash decoded content, independent of its file format.

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
    """Hash both splits with `content_hash`.

    Args:
        train: images (N, C, H, W).
        test: images (M, C, H, W).

    Returns:
        {"train": ..., "test": ...}.
    """
    return {"train": content_hash(train), "test": content_hash(test)}


def check_decoded(decoded: Decoded, where: str) -> Decoded:
    """Refuse a data set that cannot train a net.

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
    check_same_size(decoded.train, decoded.test, where)
    return decoded


def _check_split(split: Split, nclasses: int, where: str) -> None:
    if not len(split):
        raise DataError(f"{where} is empty; expected at least 1 image: add images to it")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= nclasses:
        wrong = low if low < 0 else high
        raise DataError(f"{where} has the label {wrong}; expected 0 to {nclasses - 1}: correct the labels")


def check_same_size(train: Split, test: Split, where: str) -> None:
    """Refuse test images of another size than the training images, both (N, C, H, W).

    Args:
        train: the training images.
        test: the test images.
        where: the source, for the message.

    Raises:
        DataError: the sizes differ.
    """
    if image_size(test) != image_size(train):
        have, need = size_text(image_size(test)), size_text(image_size(train))
        raise DataError(f"{where} has test images of {have}, expected {need} as in train: use images of one size")


def size_text(size: Sequence[int]) -> str:
    """Write an image size as text.

    Args:
        size: (C, H, W).

    Returns:
        "CxHxW".
    """
    return "x".join(map(str, size))


def class_mismatch(where: str, train: Sequence[str], test: Sequence[str]) -> str:
    """Write the error message for splits with different classes.

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
    return f"{where} has different classes in train and test ({difference}): give both the same classes"
