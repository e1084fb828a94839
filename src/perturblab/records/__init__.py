"""Records of runs: what was asked, what was measured, what it says. Nothing here imports torch."""
