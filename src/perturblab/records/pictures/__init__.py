"""SVG pictures of a run: its progress, its curves under attack, its attacked images."""
