"""perturblab: networks that perturb their features on purpose, trained, evaluated and re-measured exactly.

The map of the package, in the order in which a run passes through it:

* `perturblab.data`: names or paths -> checked uint8 tensors in memory; augmentation on whole batches.
* `perturblab.layers`: perturbation layers, pure function first, module second.
* `perturblab.models`: the published nets; `build(name, **options)`.
* `perturblab.training.loop`: one visible loop; the published learning-rate schedules are in `perturblab.training.schedules`.
* `perturblab.training.evaluate`: whole-number accuracy and the audit of the published metrics.
* `perturblab.records.record`, `perturblab.stats`, `perturblab.report`: one record a run, intervals, verdicts, the page.
* `perturblab.cli.main`: the command line.
"""

__version__ = "0.1.0"
