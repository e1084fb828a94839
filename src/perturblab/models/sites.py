"""Published places of BatchOut in each net, with their magnitudes."""

from typing import Any

# (name of the module whose output is mixed, magnitude as typed on the command line)
Site = tuple[str, str]

_ALTERNATE = tuple((f"features.{position}", "0.2") for position in (11, 13, 15, 17, 19))
SITES: dict[str, tuple[Site, ...]] = {
    # The paper's tables 1 and 2: every convolution and linear layer but the last, before the ReLU.
    "batchout_mnist": (("conv1", "0.05"), ("conv2", "0.1"), ("fc1", "0.1")),
    "batchout_cifar": (
        *((f"conv{number}", "U[0,0.1]") for number in (1, 2, 3, 4)),
        *((name, "U[0,0.15]") for name in ("conv5", "fc1", "fc2")),
    ),
    # The trials: the last features, and every other position from the first 512 filters on (15 is a pooling).
    "bottleneck_resnet": (("flatten", "0.3"),),
    "vgg19": _ALTERNATE,
    "vgg19_tied": _ALTERNATE,
}


def published_sites(name: str) -> tuple[Site, ...]:
    """List the published places of BatchOut in a net.

    Args:
        name: a key of `NETS`.

    Returns:
        (module, magnitude) for each place, in the order of the forward pass: the module, named as in
        `named_modules`, whose output is mixed, and the magnitude as text. Empty where nothing was published.
    """
    return SITES.get(name, ())


def published_mixing(net: str) -> dict[str, Any]:
    """Return the published settings of a net's sites.

    In the paper's nets (``batchout_*``) half of the rows move. In the nets of its reproduction all rows move, and in
    the VGGs every place uses the same partners.
    """
    if net.startswith("batchout_"):
        return {"k": 0.5}
    return {"k": 1.0, "shared": "partners"} if net.startswith("vgg") else {"k": 1.0}
