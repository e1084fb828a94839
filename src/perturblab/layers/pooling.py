"""Pooling behind a layer, in the place of a convolution's stride, as in the published nets."""

from torch import nn

from perturblab.records.choices import PoolType, check_choice


def pool(kind: str, stride: int | tuple[int, int], *, overlapping: bool = False) -> nn.Module:
    """Make the pooling of a block, from (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).

    It rounds odd sizes up, so that it always meets what a padded convolution of that stride would give.

    Args:
        kind: "max" or "avg"; two controls: "stride" keeps the first pixel of each window and so mixes no neighbours,
            "overlap" is a max over windows of 3x3.
        stride: also its window; (vertical, horizontal) where they differ. At 1 nothing happens, whatever the kind.
        overlapping: windows of 3x3, with a border of one, for the maximum and the mean.

    Raises:
        ValueError: no such kind.
    """
    check_choice("pool_type", kind, PoolType)
    if stride in (1, (1, 1)):  # a window of one pixel gives what it gets, at the cost of a pass over the map
        return nn.Identity()
    if kind == "stride":
        return nn.MaxPool2d(1, stride)
    made = nn.AvgPool2d if kind == "avg" else nn.MaxPool2d
    if overlapping or kind == "overlap":
        return made(3, stride, padding=1)
    return made(stride, stride, ceil_mode=True)
