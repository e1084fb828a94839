"""Side-by-side ratios of the fast paths and the published computation; ``make bench`` runs them all."""
