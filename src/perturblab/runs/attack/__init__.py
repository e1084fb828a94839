"""A trained run under attack."""
