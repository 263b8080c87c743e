"""What learning reaches, with shipped defaults: medians and extremes over seeds.

    python benchmarks/learning.py --seeds 5
    python benchmarks/learning.py --tasks modes svi --seeds 5
    python benchmarks/learning.py --seeds 5 --write benchmarks/RESULTS.md

Each group of tasks is in a file of its own, `learning_<group>.py`.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import torch
from learning_row import Row, lines, run_row
from report import machine, table, write_section

GROUPS = ("fit", "modes", "rbm", "ising", "log_z", "hybrid", "gaussian", "joint", "anomaly", "diffusion")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=GROUPS, default=GROUPS, help="which groups of tasks")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="the Markdown file whose sections are to be replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for group in options.tasks:
        rows: list[Row] = import_module(f"learning_{group}").ROWS
        found = [line for row in rows for line in lines(row, run_row(row, range(options.seeds)))]
        text = f"""\
{machine()}.

    python benchmarks/learning.py --tasks {group} --seeds {options.seeds}

Over {options.seeds} seeds; s are seconds of the processor.

{table(["task", "figure", "median", "lowest", "highest", "asked", "reached"], found)}
"""
        print(text)
        if options.write is not None:
            write_section(options.write, f"Learning: {group}", text)


if __name__ == "__main__":
    main()
