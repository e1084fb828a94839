"""The perturbation operation: one function, several ways to compute it, none of which makes all the maps at once.

`reference` is the published computation, which does; `native` is C++ for the CPU, `compiled`
is for accelerators, `chunked` works everywhere.
"""

from perturblab.kernels.fused import perturb_conv2d, published
from perturblab.kernels.reference import Activation, debug_log, perturb

__all__ = ["Activation", "debug_log", "perturb", "perturb_conv2d", "published"]
