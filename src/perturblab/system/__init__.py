"""This machine: files, memory, signals, processes, the terminal. Nothing here imports torch."""
