"""Many decodings compared: recipes, plans, verdicts, and a world so small that everything about it is known."""
