"""Names or paths -> checked uint8 tensors in memory; augmentation on whole batches; splits.

* `sets`: the values (`Split`, `ImageData`) and what may be done with them (choose classes, subsets, hold out).
* `known`: the data sets known by name, how a copy of one is recognised, and the preparation each one gets.
* `batches`: augmentation and normalisation of whole batches.
* `layouts`, `pictures`, `binary`, `digits`, `hub`: the folders and files that can be read, and their readers.
* `cache`: decoded images on disk, named by the content of the files they came from.
* `loading`: `load`, which ties them together.
"""

from perturblab.data.batches import augment, normalise
from perturblab.data.known import Preparation, preparation
from perturblab.data.loading import load
from perturblab.data.sets import ImageData, Split, combine, hold_out, select_classes, stratified_subset

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
