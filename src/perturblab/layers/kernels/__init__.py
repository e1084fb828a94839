"""The perturbation operation: one function, several ways to compute it, none of which makes all the maps at once.

`reference` is the published computation, which does; `native` is C++ for the CPU, `compiled`
is for accelerators, `chunked` works everywhere.
"""

from perturblab.layers.kernels.chunked import in_pieces
from perturblab.layers.kernels.fused import is_published, perturb_conv2d, published
from perturblab.layers.kernels.moments import perturbed_moments
from perturblab.layers.kernels.reference import Activation, debug_log, perturb

__all__ = [
    "Activation",
    "debug_log",
    "in_pieces",
    "is_published",
    "perturb",
    "perturb_conv2d",
    "perturbed_moments",
    "published",
]
