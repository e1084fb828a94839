"""The data sets known by name, recognition of their copies, and the preparation of each."""

import difflib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perturblab.data.sets import Decoded, ImageData, image_size, size_text
from perturblab.errors import DataError

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Preparation:
    """Normalisation and augmentation of a data set.

    Args:
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
        crop_padding: black pixels added on every side before a random crop; 0 for no cropping.
        flip: mirror half of the images left to right.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Known:
    """A data set known by name.

    Args:
        name: on the command line.
        display: the name in texts and figures.
        size: (C, H, W) of its images.
        classes: class names in label order.
        counts: number of training and test images of the complete set.
        hub: repository and configuration on the hub; empty for the bundled set.
        files: the folder in which other tools leave it, or "".
        attack_radius: the usual L-infinity radius of attacks on it, as on the command line.
    """

    name: str
    display: str
    size: Size
    classes: tuple[str, ...]
    counts: tuple[int, int]
    hub: tuple[str, ...] = ()
    files: str = ""
    attack_radius: str = "8/255"


def number_classes(count: int) -> tuple[str, ...]:
    """Make class names for labels without names.

    Args:
        count: number of classes.

    Returns:
        "0", "1", ...
    """
    return tuple(map(str, range(count)))


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_FASHION = "T - shirt / top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_COLOUR, _GREY = (3, 32, 32), (1, 28, 28)
_GREY_RADIUS = "0.3"

KNOWN = (
    Known("digits", "digits", (1, 8, 8), number_classes(10), (1200, 597), attack_radius=_GREY_RADIUS),
    Known(
        "MNIST",
        "MNIST",
        _GREY,
        number_classes(10),
        (60000, 10000),
        ("ylecun/mnist", "mnist"),
        "MNIST/raw",
        _GREY_RADIUS,
    ),
    Known(
        "FashionMNIST",
        "Fashion-MNIST",
        _GREY,
        tuple(_FASHION.split(",")),
        (60000, 10000),
        ("zalando-datasets/fashion_mnist", "fashion_mnist"),
        "FashionMNIST/raw",
        _GREY_RADIUS,
    ),
    Known(
        "CIFAR10",
        "CIFAR-10",
        _COLOUR,
        tuple(_CIFAR10.split()),
        (50000, 10000),
        ("uoft-cs/cifar10", "plain_text"),
        "cifar-10-batches-py",
    ),
    Known(
        "CIFAR100",
        "CIFAR-100",
        _COLOUR,
        tuple(_CIFAR100.split()),
        (50000, 10000),
        ("uoft-cs/cifar100", "cifar100"),
        "cifar-100-python",
    ),
    Known("SVHN", "SVHN", _COLOUR, number_classes(10), (73257, 26032), ("ufldl-stanford/svhn", "cropped_digits")),
)

_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# The constants of the published code; identical for both CIFAR sets in all three code bases.
PREPARATIONS = {
    "CIFAR10": Preparation(_CIFAR_MEAN, _CIFAR_STD, crop_padding=4, flip=True),
    "CIFAR100": Preparation(_CIFAR_MEAN, _CIFAR_STD, crop_padding=4, flip=True),
    "MNIST": Preparation((0.1307,), (0.3081,)),
}

# sha256 -> name, display. Hashes of source files for JPEG, whose pixels depend on the decoder; else of decoded
# content, which recognises every lossless copy in any layout.
_JPEG_COPY = ("CIFAR10", "CIFAR-10 (JPEG copy)")
COPIES = {
    "a8207611ef4f53d3628f7085b863ede466c92a047ce7b5f7f46192a70472fc52": _JPEG_COPY,
    "c2ae38cca419cd52d6b8e495d32641eb724bd3ee32df7e9863fd225e1c14f376": _JPEG_COPY,
    "71d3be42f93ad20da73bb4a9744d0bebdaa6832be56dc010e21940e72c4c8b1e": ("MNIST", "MNIST"),
    "4718853ea946af656684509414983beff2e65cf414265c27966161014c003b8b": ("MNIST", "MNIST"),
    "de97c810e026da8831e037c554ff78148a5616b2d74ed6612b45e6957a3070a9": ("MNIST", "MNIST"),
    "6ab9e0b14374b6e523f74c6dbf3fcc044a277afce42fc3e1efaa8f2ca75164d9": ("MNIST", "MNIST"),
}


def simplify(name: str) -> str:
    """Remove case and punctuation from a name: "CIFAR-10" becomes "cifar10".

    Args:
        name: of a data set or a folder.

    Returns:
        Its letters and digits, in lower case.
    """
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_known(name: str) -> Known:
    """Find a data set by name.

    Args:
        name: in any case, with or without hyphens.

    Returns:
        The known data set.

    Raises:
        DataError: the name is unknown; the message has the nearest name and all names.
    """
    if "/" in name:
        raise DataError(f"folder {name} does not exist; give an existing folder, or a name with --dataroot")
    by_name = {simplify(known.name): known for known in KNOWN}
    if simplify(name) in by_name:
        return by_name[simplify(name)]
    near = difflib.get_close_matches(simplify(name), by_name, n=1)
    hint = f"did you mean {by_name[near[0]].name}? Expected" if near else "expected"
    names = ", ".join(known.name for known in KNOWN)
    raise DataError(f"{name!r} is neither a folder nor a data set; {hint} a path or one of {names}")


def name_of_copy(hashes: Collection[str]) -> tuple[str, str] | None:
    """Recognise a known copy by its hashes.

    Args:
        hashes: sha256 of all source files, or of the decoded splits.

    Returns:
        (name, display) when every hash belongs to one known copy, else None.
    """
    copies = {COPIES.get(value) for value in hashes}
    return copies.pop() if len(copies) == 1 else None


def name_by_classes(classes: Sequence[str], size: Size) -> str:
    """Recognise a data set by its class names and image size.

    Class names that are numbers identify no data set. A choice of CIFAR-10's classes is still CIFAR-10.

    Args:
        classes: class names.
        size: (C, H, W).

    Returns:
        The name, or "".
    """
    candidates = [known for known in KNOWN if known.classes[0] != "0" and known.size == size]
    for known in candidates:
        if set(classes) == set(known.classes) or (known.name == "CIFAR10" and set(classes) < set(known.classes)):
            return known.name
    return ""


def contradiction(decoded: Decoded, known: Known) -> str:
    """Say why decoded images cannot be a known data set, or a choice of its classes.

    Args:
        decoded: splits of (N, C, H, W) images.
        known: the data set they should be.

    Returns:
        "5 classes of 3x8x8 images, CIFAR10 has 10 of 3x32x32", or "" when they can.
    """
    size, nclasses = image_size(decoded.train), len(decoded.classes)
    if size == known.size and nclasses <= len(known.classes):
        return ""
    expected = f"{known.name} has {len(known.classes)} of {size_text(known.size)}"
    return f"{nclasses} classes of {size_text(size)} images, {expected}"


def preparation(data: ImageData) -> Preparation:
    """Choose the normalisation and augmentation of a data set by its recognised name, not by its path.

    CIFAR10, CIFAR100 and MNIST (and a choice of their classes) get the published constants; CIFAR also gets crop 4
    and flip. Every other set is normalised with the mean and standard deviation of its training images, per channel,
    and is not augmented.

    Args:
        data: the data set; only its name and training images (N, C, H, W) are read.

    Returns:
        The settings of `augment` and `normalise`.
    """
    return PREPARATIONS.get(data.name) or Preparation(*_moments(data.train.images))


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and standard deviation per channel of images (N, C, H, W), in [0, 1], from integer sums."""
    sums, squares = [0] * images.shape[1], [0] * images.shape[1]
    for part in torch.split(images, 1024):
        wide = part.long()
        for channel in range(images.shape[1]):
            sums[channel] += int(wide[:, channel].sum())
            squares[channel] += int(wide[:, channel].square().sum())
    count = images.numel() // images.shape[1]
    mean = tuple(total / count / 255 for total in sums)
    spread = (math.sqrt(count * square - total**2) / count / 255 for total, square in zip(sums, squares, strict=True))
    # A constant channel has spread 0; dividing by 1 keeps it at 0.
    return mean, tuple(value or 1.0 for value in spread)
