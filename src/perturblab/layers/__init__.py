"""Layers that perturb their features: pure function first, module second."""

from perturblab.layers.activations import ACTIVATIONS, activation
from perturblab.layers.batchout import batchout, equal_norm_noise
from perturblab.layers.inference import inference_batchout, inference_logits
from perturblab.layers.lbc import AnchorConv2d, LocalBinaryConv2d, draw_anchors, local_binary_conv2d
from perturblab.layers.magnitude import Magnitude, parse_magnitude
from perturblab.layers.masks import MaskOptions, Masks, Noise, draw_masks, fixed_buffers, store_masks
from perturblab.layers.mixing import BatchOut, Mixing, batch_step
from perturblab.layers.partners import PARTNERS, draw_partners
from perturblab.layers.perturb import (
    NoiseLayer,
    PerturbConv2d,
    PerturbLayer,
    PerturbLayerFirst,
    perturb,
    perturb_conv2d,
    plain_layer,
)
from perturblab.layers.shift import Shift, shift
from perturblab.layers.surgery.batchout_sites import Placement, batchout_at, find_sites
from perturblab.layers.surgery.perturbify import perturb_layers, perturbify
from perturblab.layers.surgery.replace import Surgery, replace_layers
from perturblab.layers.surgery.substitute import Substitution, substitute
from perturblab.layers.surgery.tracing import Trace, trace

__all__ = [
    "ACTIVATIONS",
    "PARTNERS",
    "AnchorConv2d",
    "BatchOut",
    "LocalBinaryConv2d",
    "Magnitude",
    "MaskOptions",
    "Masks",
    "Mixing",
    "Noise",
    "NoiseLayer",
    "PerturbConv2d",
    "PerturbLayer",
    "PerturbLayerFirst",
    "Placement",
    "Shift",
    "Substitution",
    "Surgery",
    "Trace",
    "activation",
    "batch_step",
    "batchout",
    "batchout_at",
    "draw_anchors",
    "draw_masks",
    "draw_partners",
    "equal_norm_noise",
    "find_sites",
    "fixed_buffers",
    "inference_batchout",
    "inference_logits",
    "local_binary_conv2d",
    "parse_magnitude",
    "perturb",
    "perturb_conv2d",
    "perturb_layers",
    "perturbify",
    "plain_layer",
    "replace_layers",
    "shift",
    "store_masks",
    "substitute",
    "trace",
]
