"""One run of structured inference by pyro_ebm, PGMax or pgmpy: cpu seconds of each task, and some of its answer.

Tasks: loopy belief propagation on a grid of 32x32 elements with 8 states, 100 iterations at a damping of 0.5,
sum-product and max-product, in float32; exact answers of a 10x10 spin glass in float64. Each is done several times, and
the least counts: the first builds.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

SIDE, STATES, ITERATIONS, DAMPING = 32, 8, 100, 0.5
SPINS, DRAWS, REPEATS = 10, 1000, 5
Found = dict[str, tuple[float, list[float]]]


def edges(side: int) -> np.ndarray[Any, Any]:
    """Pairs of neighbours of a square grid, numbered row by row."""
    number = np.arange(side * side).reshape(side, side)
    across = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], -1)
    return np.concatenate([across, np.stack([number[:-1].ravel(), number[1:].ravel()], -1)])


def potts() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Log-potentials of the grid's elements and edges."""
    random = np.random.default_rng(0)
    fields = random.normal(size=(SIDE * SIDE, STATES))
    return fields, 0.5 * random.normal(size=(len(edges(SIDE)), STATES, STATES))


def spin_glass() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Fields and couplings of the spin glass."""
    random = np.random.default_rng(1)
    return 0.3 * random.normal(size=SPINS * SPINS), random.normal(size=len(edges(SPINS)))


def least(task: Callable[[], Any]) -> tuple[float, Any]:
    """The least cpu time of a task, and its answer."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        answer = task()
        times.append(time.process_time() - started)
    return min(times), answer


def by_pyro_ebm() -> Found:
    import torch

    from pyro_ebm import FactorGraph, FieldEnergy, IsingEnergy, TableEnergy, belief_propagation, spin

    warnings.simplefilter("ignore")  # the iterations are counted, and not run to convergence
    fields, tables = (torch.tensor(each, dtype=torch.float32) for each in potts())
    g = FactorGraph()
    x = g.variable("x", num_states=STATES, shape=(SIDE, SIDE))
    g.factor(TableEnergy(-fields, 1), x[:])
    g.factor(TableEnergy(-tables, 2), x[torch.from_numpy(edges(SIDE))])
    options = {"max_iterations": ITERATIONS, "damping": DAMPING, "tolerance": 0.0}
    found: Found = {}
    for name, maximize in (("sum-product", False), ("max-product", True)):
        seconds, answer = least(lambda maximize=maximize: belief_propagation(g, max_product=maximize, **options))
        found[name] = seconds, answer.marginals["x"][0, 0].tolist()
    fields, couplings = (torch.from_numpy(each) for each in spin_glass())
    glass = FactorGraph()
    spins = glass.variable("spins", support=spin, shape=(SPINS, SPINS))
    glass.factor(FieldEnergy(fields), spins[:])
    glass.factor(IsingEnergy(couplings), spins[torch.from_numpy(edges(SPINS))])
    seconds, value = least(glass.log_partition)
    found["log Z"] = seconds, [float(value)]
    seconds, marginals = least(glass.marginals)
    found["marginals"] = seconds, marginals["spins"][0, :4, 1].tolist()
    seconds, _ = least(glass.mode)
    found["mode"] = seconds, []
    seconds, _ = least(lambda: glass.sample((DRAWS,)))
    found["1000 draws"] = seconds, []
    return found


def by_pgmax() -> Found:
    import jax
    from pgmax import fgraph, fgroup, infer, vgroup

    fields, tables = potts()
    x = vgroup.NDVarArray(num_states=STATES, shape=(SIDE, SIDE))
    scopes = [[x[divmod(int(a), SIDE)], x[divmod(int(b), SIDE)]] for a, b in edges(SIDE)]
    g = fgraph.FactorGraph(variable_groups=x)
    g.add_factors(fgroup.PairwiseFactorGroup(variables_for_factors=scopes, log_potential_matrix=tables))
    passing = infer.build_inferer(g.bp_state, backend="bp")
    start = passing.init(evidence_updates={x: fields.reshape(SIDE, SIDE, STATES)})
    found: Found = {}
    for name, temperature in (("sum-product", 1.0), ("max-product", 0.0)):
        run = jax.jit(
            lambda arrays, t=temperature: passing.run(arrays, num_iters=ITERATIONS, damping=DAMPING, temperature=t)
        )
        seconds, arrays = least(lambda run=run: jax.block_until_ready(run(start)))
        beliefs = np.asarray(passing.get_beliefs(arrays)[x])[0, 0]
        weights = np.exp(beliefs - beliefs.max())
        found[name] = seconds, (weights / weights.sum()).tolist()
    return found


def by_pgmpy() -> Found:
    from pgmpy.factors.discrete import DiscreteFactor
    from pgmpy.inference import VariableElimination
    from pgmpy.models import DiscreteMarkovNetwork

    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    fields, couplings = spin_glass()
    names = [f"x{number}" for number in range(SPINS * SPINS)]
    model = DiscreteMarkovNetwork()
    model.add_nodes_from(names)
    factors = [DiscreteFactor([n], [2], np.exp([-h, h])) for n, h in zip(names, fields, strict=True)]
    for (a, b), j in zip(edges(SPINS), couplings, strict=True):
        model.add_edge(names[a], names[b])
        factors.append(DiscreteFactor([names[a], names[b]], [2, 2], np.exp([j, -j, -j, j])))
    model.add_factors(*factors)
    engine = VariableElimination(model)

    def marginal(name: str) -> Any:
        return engine.query([name], elimination_order="greedy", show_progress=False).values

    seconds, row = least(lambda: marginal(names[0]))
    found: Found = {
        "log Z": (seconds, [float(np.log(row.sum()))])
    }  # it is not normalised; log Z asked for is too large
    started = time.process_time()
    rows = [marginal(name) for name in names]
    seconds = time.process_time() - started
    found["marginals"] = seconds, [float(row[1] / row.sum()) for row in rows[:4]]
    try:
        started = time.process_time()
        engine.map_query(elimination_order="greedy", show_progress=False)
        found["mode"] = time.process_time() - started, []
    except MemoryError:
        found["mode"] = float("inf"), []
    return found


RUNS = {"pyro_ebm": by_pyro_ebm, "pgmax": by_pgmax, "pgmpy": by_pgmpy}
PACKAGES = {"pyro_ebm": ["pyro_ebm", "torch"], "pgmax": ["pgmax", "jax"], "pgmpy": ["pgmpy"]}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=RUNS, required=True)
    by = parser.parse_args().by
    report = RUNS[by]()
    print(json.dumps({"found": report, "versions": {name: version(name) for name in PACKAGES[by]}}))
