"""Pixels and holes: datasets, the toy cats, what is put into a hole and over a result. It knows no network."""
