"""Chains: paths of elements, whose exact answers have kernels of their own."""
