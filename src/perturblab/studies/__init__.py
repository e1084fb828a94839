"""Studies of many runs: the published catalogue, sizes, plans and jobs. Nothing here imports torch."""
