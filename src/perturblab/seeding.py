"""Independent random streams from one seed: initialisation, masks, order and augmentation share no numbers."""

import hashlib

import torch


def stream(seed: int, name: str) -> torch.Generator:
    """Make the generator of one named stream of a run.

    Args:
        seed: the run's seed.
        name: of the stream, such as "masks", "init", "order" or "augmentation".

    Returns:
        A CPU generator; another seed or another name gives unrelated numbers.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
