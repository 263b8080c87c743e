"""Writes what `check.py --keep FILE` has found to the section on posteriordb of RESULTS.md.

python benchmarks/posteriordb/results.py FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from report import machine, table, write_section

Row = dict[str, Any]
HEADER = ("kernel", "chains", "z mean", "z sd", "R-hat", "min ESS", "divergences", "seconds", "verdict")
INTRODUCTION = """
    python benchmarks/posteriordb/check.py --kernel KERNEL --chains CHAINS --keep FILE
    python benchmarks/posteriordb/results.py FILE

1,000 + 1,000 transitions of each chain, seed 0, all settings the defaults; a transition of MALA and Barker is 10 steps,
one of UnderdampedLangevin and RandomWalk 30. z is the largest distance of a mean, or of a standard deviation, from
the reference draws', in combined Monte Carlo standard errors; R-hat is the largest, ESS the smallest bulk ESS. A run
passes where both z are at most 4 and R-hat is below 1.01. Seconds are by the clock, builds included, on a machine
that other work shared.

The Gaussian process is too narrow in places for short-sighted kernels at so few steps; no mean or deviation is off.
With num_steps=100 RandomWalk passes with 4 and 64 chains and MALA with 64; with 200 MALA passes with 4, and
Barker with 64; Barker with 4 has an R-hat of 1.011. A random walk of four chains is still on its way to the bulk of
the hidden Markov model when the warm-up ends.
"""


def verdict(row: Row) -> str:
    """Whether a run passes, and if not, for what."""
    if row["passes"]:
        return "passes"
    return "**R-hat**" if max(row["z_mean"], row["z_sd"]) <= 4 else "**z**"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    figures = (f"{row['z_mean']:.2f}", f"{row['z_sd']:.2f}", f"{row['r_hat']:.3f}", f"{row['ess']:,.0f}")
    return row["kernel"], str(row["chains"]), *figures, str(row["divergences"]), f"{row['seconds']:.0f}", verdict(row)


def section(rows: list[Row]) -> str:
    """The text of the section: the last result of each kernel and number of chains, posterior by posterior."""
    last = {(row["posterior"], row["kernel"], row["chains"]): row for row in rows}
    passing = sum(row["passes"] for row in last.values())
    parts = [machine() + ".", INTRODUCTION.strip("\n"), f"{passing} of {len(last)} pass."]
    for posterior in sorted({name for name, _, _ in last}):
        lines = [cells(row) for (name, _, _), row in sorted(last.items()) if name == posterior]
        parts.append(f"### {posterior}\n\n{table(HEADER, lines)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    kept = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    write_section(Path(__file__).parents[1] / "RESULTS.md", "posteriordb", section(kept))
