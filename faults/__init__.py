"""Faults, injected for real into real processes: what survives, and what is told where nothing can."""
