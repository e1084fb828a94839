"""One run: built, trained, evaluated, attacked, exported, in its own folder."""
