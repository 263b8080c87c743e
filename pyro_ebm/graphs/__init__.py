"""Graphs: exact answers on chains and trees."""
