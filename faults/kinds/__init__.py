"""Eight kinds of bad input; each module makes any number of cases from a seed."""
