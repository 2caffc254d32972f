"""Pixels and holes: datasets, the toy cats, what is put into a hole and over a result."""

from lab5.data.dataset import Dataset, denormalise, get_dataset, normalise, open_dataset, token_mask

__all__ = ["Dataset", "denormalise", "get_dataset", "normalise", "open_dataset", "token_mask"]
