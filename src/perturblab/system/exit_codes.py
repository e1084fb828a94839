"""Exit codes of the command line and of the processes of a study."""

# Exit codes: done; a failed run or check, or a bug of perturblab; the user's mistake; stopped by a signal.
DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
