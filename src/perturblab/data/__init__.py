"""Data sets as checked uint8 tensors in memory: loading by name or path, augmentation, splits.

* `sets`: the values (`Split`, `ImageData`) and their checks.
* `subsets`: choosing from them: classes, stratified subsets, images for validation.
* `known`: the data sets known by name, recognition of their copies, and the preparation of each.
* `batches`: augmentation and normalisation of whole batches.
* `layouts`, `pictures`, `parquet`, `binary`, `digits`, `hub`: readable folders and files, and their readers.
* `cache`: decoded images on disk, named by the content of their files.
* `loading`: `load`, which ties them together.
"""

from perturblab.data.batches import augment, normalise
from perturblab.data.known import Preparation, preparation
from perturblab.data.loading import load
from perturblab.data.sets import ImageData, Split
from perturblab.data.subsets import combine, hold_out, select_classes, stratified_subset

__all__ = [
    "ImageData",
    "Preparation",
    "Split",
    "augment",
    "combine",
    "hold_out",
    "load",
    "normalise",
    "preparation",
    "select_classes",
    "stratified_subset",
]
