"""Layers put into any model, and taken out again: perturbation layers, any others, BatchOut by hooks."""
