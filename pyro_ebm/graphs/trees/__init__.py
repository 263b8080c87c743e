"""Forests: exact answers in two passes, batched over all elements of a depth."""
