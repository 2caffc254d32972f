"""How fast lab5 is, beside an honest plain implementation of how the lab's template works: `python -m bench`."""
