"""Perturbative networks and BatchOut, trained, evaluated, attacked and re-measured exactly.

The rooms of the package, from the ground up:

* `perturblab.system`: this machine: files, memory, signals, the terminal.
* `perturblab.data`: names or paths -> checked uint8 tensors in memory; augmentation on whole batches.
* `perturblab.layers`: perturbation layers, pure function first, module second; surgery on any net.
* `perturblab.models`: the published nets; `build(name, **options)`.
* `perturblab.attacks`: attacks, and the checks that a masked gradient cannot pass for a defence.
* `perturblab.training`: one visible loop, exact answers, the audit of the published metrics.
* `perturblab.records`, `perturblab.stats`: one record per run; intervals and verdicts.
* `perturblab.runs`: one run, from its flags to its folder; its attacks and exports.
* `perturblab.studies`, `perturblab.report`: many runs; the page that judges the published claims.
* `perturblab.cli`: the command line.
"""

__version__ = "0.1.0"
