"""The `.fg` format of libDAI: factors one after another, each with its variables and its weights that are not zero.

    1                            factors
                                 for each, after an empty line:
    2                            number of variables
    0 1                          their labels
    2 2                          their numbers of states
    3                            number of weights that are given; the others are zero
    0 0.5                        position and weight; the first variable changes fastest
    1 1.0
    3 0.25

References:
    Mooij 2010, libDAI: a free and open source C++ library for discrete approximate inference in graphical models.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from pyro_ebm.graphs.formats.network import Tables
from pyro_ebm.graphs.formats.tokens import Tokens, read_text

_COMMENT = re.compile(r"#.*")


def read_fg(path: Path) -> Tables:
    """The variables and tables of an `.fg` file; variables are in the order of their labels.

    Raises:
        GraphError: if it is malformed; the message has the line.
    """
    tokens = Tokens(path, _COMMENT.sub("", read_text(path)))
    sizes: dict[int, int] = {}
    read = []
    for _ in range(tokens.integer("the number of factors")):
        arity = tokens.integer("the number of a factor's variables")
        labels: list[int] = []
        for _ in range(arity):
            labels.append(tokens.integer("the label of a variable"))
            if labels[-1] in labels[:-1]:
                raise tokens.error("each variable once in a factor")
        for label in labels:
            size = tokens.integer(f"the number of states of variable {label}", 1)
            if sizes.setdefault(label, size) != size:
                raise tokens.error(f"{sizes[label]} states of variable {label}, as before")
        read.append((labels, _weights(tokens, [sizes[label] for label in labels])))
    tokens.end("the last factor")
    order = sorted(sizes)
    number = {label: position for position, label in enumerate(order)}
    factors = [(tuple(number[label] for label in labels), table) for labels, table in read]
    states = tuple(tuple(map(str, range(sizes[label]))) for label in order)
    return Tables(tuple(map(str, order)), states, factors)


def _weights(tokens: Tokens, shape: list[int]) -> torch.Tensor:
    """A table of weights, `(K_1, ..., K_r)`."""
    entries = math.prod(shape)
    count = tokens.integer("the number of weights", 0, entries)
    given: dict[int, float] = {}
    for _ in range(count):
        position = tokens.integer("the position of a weight", 0, entries - 1)
        if position in given:
            raise tokens.error("each position once")
        given[position] = tokens.weight("a weight")
    flat = torch.zeros(entries, dtype=torch.float64)
    flat[list(given)] = torch.tensor(list(given.values()), dtype=torch.float64)
    return flat.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
