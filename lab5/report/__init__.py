"""Executed notebooks to pages, and a run of all of them."""
