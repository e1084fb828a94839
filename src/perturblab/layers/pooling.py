"""What stands where a convolution had a stride: a pooling behind the layer, as in the published nets."""

from torch import nn

POOLS: dict[str, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


def pool(kind: str, stride: int | tuple[int, int]) -> nn.Module:
    """The pooling of a block, from (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).

    It rounds odd sizes up, so that it always meets what a padded convolution of that stride would give.

    Args:
        kind: a key of `POOLS`.
        stride: also its window; (vertical, horizontal) where they differ.

    Raises:
        ValueError: the kind is neither "max" nor "avg".
    """
    return pooling(kind)(stride, stride, ceil_mode=True)


def pooling(kind: str) -> type[nn.MaxPool2d] | type[nn.AvgPool2d]:
    """The pooling class of that name.

    Raises:
        ValueError: the name is neither "max" nor "avg".
    """
    if kind not in POOLS:
        raise ValueError(f"pool_type is {kind!r}; choose one of {', '.join(POOLS)}")
    return POOLS[kind]
