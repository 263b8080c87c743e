"""Writes what `check.py --keep FILE` has found to the section on posteriordb of RESULTS.md.

python benchmarks/posteriordb/results.py FILE
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from report import machine, table, write_section

Row = dict[str, Any]
HEADER = ("posterior", "kernel", "chains", "z mean", "z sd", "R-hat", "min ESS", "divergences", "seconds", "verdict")
INTRODUCTION = """
    git clone https://github.com/stan-dev/posteriordb
    python benchmarks/posteriordb/check.py --kernel KERNEL --chains CHAINS --data posteriordb --keep FILE
    python benchmarks/posteriordb/results.py FILE

1,000 + 1,000 transitions of each chain, seed 0, all settings the defaults; a transition of MALA and Barker is 10 steps
or more, as the warm-up finds, one of UnderdampedLangevin and RandomWalk 30 or more. z is the largest distance of a
mean, or of a standard deviation, from the reference draws', in combined Monte Carlo standard errors; R-hat is the
largest, ESS the smallest bulk ESS. A run passes where both z are at most 4 and R-hat is below 1.01. Seconds are by the
clock, builds included, on a machine that other work shared.
"""


def verdict(row: Row) -> str:
    """Whether a run passes, and if not, for what."""
    if row["passes"]:
        return "passes"
    return "**R-hat**" if max(row["z_mean"], row["z_sd"]) <= 4 else "**z**"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table of all figures."""
    figures = (f"{row['z_mean']:.2f}", f"{row['z_sd']:.2f}", f"{row['r_hat']:.3f}", f"{row['ess']:,.0f}")
    about = (row["posterior"], row["kernel"], str(row["chains"]))
    return *about, *figures, str(row["divergences"]), f"{row['seconds']:.0f}", verdict(row)


def passing(rows: list[Row]) -> str:
    """How many posteriors each kernel passes, by number of chains."""
    run = Counter((row["kernel"], row["chains"]) for row in rows)
    passed = Counter((row["kernel"], row["chains"]) for row in rows if row["passes"])
    chains = sorted({count for _, count in run})
    lines = [
        (kernel, *(f"{passed[kernel, count]} of {run[kernel, count]}" for count in chains))
        for kernel in sorted({kernel for kernel, _ in run})
    ]
    return table(("kernel", *(f"{count} chains" for count in chains)), lines)


def section(rows: list[Row], notes: str) -> str:
    """The text of the section: the last result of each posterior, kernel and number of chains.

    Args:
        rows: the results.
        notes: what is said of them by hand, kept as it is.
    """
    last = list({(row["posterior"], row["kernel"], row["chains"]): row for row in rows}.values())
    last.sort(key=lambda row: (row["posterior"], row["kernel"], row["chains"]))
    failing = [cells(row) for row in last if not row["passes"]]
    usual = [cells(row) for row in last if row["kernel"] in ("NUTS", "ChEES")]
    parts = [machine() + ".", INTRODUCTION.strip("\n"), "### Posteriors that pass", passing(last)]
    parts += ["### Runs that do not pass", notes, table(HEADER, failing)]
    parts += ["### NUTS and ChEES-HMC on each posterior", table(HEADER, usual)]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    """Write the section, with the notes of the file beside the results, if there is one."""
    kept = Path(sys.argv[1])
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    beside = kept.with_suffix(".md")
    notes = beside.read_text().strip() if beside.exists() else ""
    write_section(Path(__file__).parents[1] / "RESULTS.md", "posteriordb", section(rows, notes))


if __name__ == "__main__":
    main()
