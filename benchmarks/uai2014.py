"""Exact answers of the UAI 2014 competition's instances against its reference solutions.

    python benchmarks/uai2014.py FOLDER

The folder has `NAME.uai`, `NAME.uai.evid`, `NAME.uai.PR` and `NAME.uai.MAR`. Of each instance: the width of the
elimination and the base-2 logarithm of its largest table; log10 Z against the reference; the largest error of a
marginal; the energy of the mode; cpu seconds for reading, log Z, marginals and the mode.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import machine, table, write_section

from pyro_ebm import Network, TreewidthError, read_network
from pyro_ebm.graphs.elimination.plan import plan_of


def timed(task: Callable[[], Any]) -> tuple[Any, str]:
    started = time.process_time()
    answer = task()
    return answer, f"{time.process_time() - started:.2f}"


def marginal_error(network: Network, path: Path) -> tuple[str, str]:
    """The largest error of a marginal, and the seconds that marginals take."""
    marginals, seconds = timed(network.graph.marginals)
    if not path.exists():
        return "no reference", seconds
    numbers = iter(path.read_text().split()[2:])
    worst = 0.0
    for row in network.probabilities(marginals):
        expected = [float(next(numbers)) for _ in range(int(next(numbers)))]
        worst = max(worst, float((row - torch.tensor(expected, dtype=row.dtype)).abs().max()))
    return f"{worst:.1e}", seconds


def row(path: Path) -> list[str]:
    """A row of the table."""
    network, reading = timed(lambda: read_network(path, f"{path}.evid"))
    plan = plan_of(network.graph.log_tables())
    reference = float(Path(f"{path}.PR").read_text().split()[1])
    cells = [path.stem, str(len(network.names)), str(plan.width), f"{math.log2(plan.largest):.1f}", f"{reference:g}"]
    try:
        value, of_value = timed(lambda: float(network.graph.log_partition()) / math.log(10))
        error, of_marginals = marginal_error(network, Path(f"{path}.MAR"))
        mode, of_mode = timed(network.graph.mode)
    except TreewidthError:
        return [*cells, "too wide", "", "", "", reading, "", "", ""]
    relative = abs(value - reference) / abs(reference)
    energy = f"{float(network.graph(mode)):.4f}"
    return [*cells, f"{value:.6f}", f"{relative:.1e}", error, energy, reading, of_value, of_marginals, of_mode]


def main() -> int:
    """Run, and print the table: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="instances; by default all")
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.names or sorted(each.stem for each in options.folder.glob("*.uai"))
    rows = []
    for name in names:
        rows.append(row(options.folder / f"{name}.uai"))
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ["", "n", "width", "log2", "reference", "log10 Z", "relative", "marginals", "mode's energy"]
    text = f"""\
{machine()}.

    python benchmarks/uai2014.py FOLDER

Exact answers against the reference solutions of the competition, whose marginals have six digits; n variables, and the
base-2 logarithm of the largest table. Seconds are those of the processor.

{table([*header, "read s", "log Z s", "marginals s", "mode s"], rows)}
"""
    print(text)
    if options.write is not None:
        write_section(options.write, "UAI 2014", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
