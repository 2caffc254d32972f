"""The networks of a run, trained once and then found on disk."""
