"""The bundled digits: 1,797 handwritten digits of 8x8 pixels, for trying everything without a download."""

from pathlib import Path

import numpy as np
import torch

from perturblab.data.known import number_classes
from perturblab.data.sets import Decoded, Split

TRAIN = 1200
_FILE = Path(__file__).with_name("digits.npz")


def read_digits() -> Decoded:
    """Read the UCI "Optical Recognition of Handwritten Digits" test set (E. Alpaydin, C. Kaynak 1998, CC BY 4.0).

    The first 1,200 in stored order are the training images, the last 597 the test images. The original values v,
    0 to 16, are stored as ``v * 255 // 16``, which covers 0 to 255 and is exactly reversible:
    ``v = -(-stored * 16 // 255)``.

    Returns:
        Images (1200, 1, 8, 8) and (597, 1, 8, 8), ten classes.
    """
    with np.load(_FILE, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"]).unsqueeze(1)
        labels = torch.from_numpy(file["labels"]).long()
    return Decoded(Split(images[:TRAIN], labels[:TRAIN]), Split(images[TRAIN:], labels[TRAIN:]), number_classes(10))
