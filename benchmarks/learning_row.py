"""One row of the table of learning: a task, what is to be reached, and a run of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Figures = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """Between which values a figure is to be, ends included; its median over seeds unless `worst`."""

    low: float = -math.inf
    high: float = math.inf
    worst: bool = False


@dataclass(frozen=True)
class Row:
    """A task.

    Attributes:
        task: what is done.
        run: of a seed: named figures.
        goals: for some of the figures. "s" are seconds of the processor, measured by `run_row`.
    """

    task: str
    run: Callable[[int], Figures]
    goals: dict[str, Goal]


def run_row(row: Row, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The figures of all seeds by name, "s" among them."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        start = time.process_time()
        figures = row.run(seed)
        figures.setdefault("s", time.process_time() - start)
        for name, figure in figures.items():
            found.setdefault(name, []).append(figure)
        print(f"{row.task}, seed {seed}: " + ", ".join(f"{n} {f:.4g}" for n, f in figures.items()), flush=True)
    return found


def lines(row: Row, found: dict[str, list[float]]) -> list[list[str]]:
    """A line of the table for each figure: its median, its extremes, what is asked, and whether that is reached."""
    result = []
    for name, values in found.items():
        goal = row.goals.get(name)
        middle, low, high = statistics.median(values), min(values), max(values)
        asked, reached = "", ""
        if goal is not None:
            bounds = [f">= {goal.low:g}"] * (goal.low > -math.inf) + [f"<= {goal.high:g}"] * (goal.high < math.inf)
            asked = " and ".join(bounds) + (", worst" if goal.worst else "")
            judged = (low, high) if goal.worst else (middle, middle)
            reached = "yes" if goal.low <= judged[0] and judged[1] <= goal.high else "no"
        result.append([row.task, name, f"{middle:.4g}", f"{low:.4g}", f"{high:.4g}", asked, reached])
    return result
