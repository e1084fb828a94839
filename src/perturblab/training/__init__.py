"""Training and exact evaluation: the loop, its schedules, several ranks, adversarial training."""
