"""The format of the UAI competitions: `.uai` networks (MARKOV and BAYES) and `.evid` evidence.

    MARKOV                       or BAYES, where a factor's last variable is the child
    3                            variables
    2 2 3                        their numbers of states
    2                            factors
    1 0                          number and names of a factor's variables
    2 0 1
    2 0.4 0.6                    number of weights, and these, the last variable changing fastest
    4 1.0 0.5 0.5 1.0

References:
    UAI 2014 Inference Competition, file formats. https://ics.uci.edu/~dechter/softwares/benchmarks/UaiFormat.pdf
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.formats.network import Tables
from pyro_ebm.graphs.formats.tokens import Tokens, read_text
from pyro_ebm.graphs.tables import LogTables


def read_uai(path: Path) -> Tables:
    """The variables and tables of a `.uai` file.

    Raises:
        GraphError: if it is malformed; the message has the line.
    """
    tokens = Tokens(path, read_text(path))
    tokens.literal("MARKOV", "BAYES")
    count = tokens.integer("the number of variables", 1)
    sizes = [tokens.integer("a number of states", 1) for _ in range(count)]
    scopes = []
    for _ in range(tokens.integer("the number of factors")):
        arity = tokens.integer("the number of a factor's variables", 0, count)
        scope: list[int] = []
        for _ in range(arity):
            scope.append(tokens.integer("a variable", 0, count - 1))
            if scope[-1] in scope[:-1]:
                raise tokens.error("each variable once in a factor")
        scopes.append(tuple(scope))
    factors = []
    for scope_of in scopes:
        shape = [sizes[number] for number in scope_of]
        entries = math.prod(shape)
        tokens.integer(f"the number of weights of the factor over {list(scope_of)}", entries, entries)
        weights = [tokens.weight("a weight") for _ in range(entries)]
        factors.append((scope_of, torch.tensor(weights, dtype=torch.float64).reshape(shape)))
    tokens.end("the last table")
    states = tuple(tuple(map(str, range(size))) for size in sizes)
    return Tables(tuple(map(str, range(count))), states, factors)


def read_evidence(path: Path) -> dict[int | str, int | str]:
    """The evidence in an `.evid` file: `n variable state variable state ...`, or the older form, with a 1 in front.

    The older form has the number of samples in the first line, and a line as above for each; there must be one sample.

    Raises:
        GraphError: if it is malformed; the message has the line.
    """
    tokens = Tokens(path, read_text(path))
    if not len(tokens):
        return {}
    given = len(tokens)
    count = tokens.integer("the number of observed variables")
    if given != 1 + 2 * count and count == 1 and given % 2 == 0:
        count = tokens.integer("the number of observed variables")
    evidence: dict[int | str, int | str] = {}
    for _ in range(count):
        variable = tokens.integer("a variable")
        if variable in evidence:
            raise tokens.error("each variable once")
        evidence[variable] = tokens.integer("a state")
    tokens.end(f"the states of {count} variables, in one sample")
    return evidence


def write_uai(tables: LogTables, path: Path) -> None:
    """Write a discrete graph as a MARKOV network, its elements numbered as in its tables.

    Raises:
        GraphError: if it has batch dims, or a weight is too large or too small to be written as a float64.
    """
    if tables.batch_shape:
        raise GraphError(
            f"write_graph: got a graph of batch shape {tuple(tables.batch_shape)}, expected one without. Write the "
            "graphs of the batch one by one."
        )
    scopes, weights = [], []
    for group in tables.groups:
        logs = group.log_potentials.detach().double().cpu()
        values = logs.exp()
        if bool(((values == torch.inf) | ((values == 0) & (logs != -torch.inf))).any()):
            raise GraphError(
                f"write_graph: got log-potentials from {float(logs.min()):.4g} to {float(logs.max()):.4g}, expected "
                "ones whose exponentials are floats: the format has weights. Add a constant to the energy."
            )
        for scope, table in zip(
            group.scopes.tolist(), values.expand(len(group.scopes), *values.shape[1:]), strict=True
        ):
            scopes.append(" ".join(map(str, [len(scope), *scope])))
            weights.append(f"{table.numel()}\n" + " ".join(map(repr, table.flatten().tolist())))
    counts = " ".join(map(str, tables.num_states))
    lines = ["MARKOV", str(len(tables.num_states)), counts, str(len(scopes)), *scopes, "", *weights, ""]
    text = "\n".join(lines)
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(text)
    else:
        path.write_text(text, encoding="utf-8")
