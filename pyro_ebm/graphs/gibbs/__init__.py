"""Gibbs sweeps: blocks of elements that are conditionally independent, by colours."""
