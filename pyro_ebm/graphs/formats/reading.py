"""Reading and writing of graphs, by the name of the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.formats.bif import read_bif
from pyro_ebm.graphs.formats.fg import read_fg
from pyro_ebm.graphs.formats.network import Network, make_network, numbered_evidence
from pyro_ebm.graphs.formats.uai import read_evidence, read_uai, write_uai
from pyro_ebm.graphs.graph import FactorGraph

_READERS = {".uai": read_uai, ".fg": read_fg, ".bif": read_bif}

EvidenceLike = str | os.PathLike[str] | Mapping[int | str, int | str]


def read_network(path: str | os.PathLike[str], evidence: EvidenceLike | None = None) -> Network:
    """Read a discrete network: its factor graph, and where in it the file's variables are.

    Formats go by the end of the name: `.uai` (the UAI competitions), `.fg` (libDAI) and `.bif` (bnlearn), each plain or
    with `.gz`. The graph's energies are `-log weight` in float64, infinite where a weight is zero.

    In a `.bif` network each variable is one of the graph, with its name. Elsewhere variables have numbers, and are the
    elements, in their order, of one array `x` if all have equally many states, else of an array for each number of
    states, `x2`, `x3`, ...; `Network.probabilities` and `Network.assignment` put answers in the file's order.

    Args:
        path: the file.
        evidence: what is observed: an `.evid` file, or state by variable, both by name or, in files without names, by
            number.

    Raises:
        GraphError: if the file is malformed (the message has the line), or the evidence does not fit.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "small.uai"
    ...     _ = path.write_text("MARKOV 2 2 3 1 2 0 1 6 1 2 3 4 5 6")
    ...     network = read_network(path, evidence={0: 1})
    >>> network.graph
    FactorGraph(...)
    >>> network.probabilities(network.graph.marginals())
    (tensor([0., 1.], dtype=torch.float64), tensor([0.2667, 0.3333, 0.4000], dtype=torch.float64))
    """
    path = Path(path)
    tables = _READERS[_format(path, _READERS)](path)
    if evidence is None:
        evidence = {}
    elif not isinstance(evidence, Mapping):
        evidence = read_evidence(Path(evidence))
    return make_network(tables, numbered_evidence(tables, evidence))


def read_graph(path: str | os.PathLike[str], evidence: EvidenceLike | None = None) -> FactorGraph:
    """Read a discrete network as a factor graph alone: `read_network(path, evidence).graph`, see there."""
    return read_network(path, evidence).graph


def write_graph(graph: FactorGraph, path: str | os.PathLike[str]) -> None:
    """Write a discrete graph as a `.uai` or `.uai.gz` file.

    Its elements are numbered through all variables in the order of their declaration; weights are `exp(-energy)`.

    Raises:
        GraphError: if the graph has continuous variables or batch dims, if a weight is no float64, or the name has
            another ending.
    """
    path = Path(path)
    _format(path, (".uai",))
    write_uai(graph.log_tables(), path)


def _format(path: Path, known: Mapping[str, object] | tuple[str, ...]) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in known:
        raise GraphError(f'{path}: got a name that ends in "{path.suffix}", expected {", ".join(known)}, or with .gz.')
    return suffix
