"""Engines that say that they are approximate: belief propagation, tree-reweighted bounds, mean field."""
