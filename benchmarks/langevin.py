"""Compares Langevin dynamics of pyro_ebm with a loop by hand and with torchebm, 1,000 chains in float32.

    python benchmarks/langevin.py
    python benchmarks/langevin.py --torchebm-python PATH --write benchmarks/RESULTS.md

Two energies: a network 784-256-256-1, and a double well in the plane. Every run is a process of its own, on one core;
`--torchebm-python` names a Python that has torchebm, and without it that is left out. What counts is steps of all
chains per second, unadjusted, with the same step size, builds not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from report import machine, table, write_section
from samplers import ONE_THREAD, Ratio, number, pin

HERE = Path(__file__).parent
STEPS = {"neural": 200, "double_well": 5000}
TITLES = {"neural": "network 784-256-256-1", "double_well": "double well 2-d"}
BY = {"pyro_ebm": "pyro_ebm Langevin", "hand": "loop by hand, autograd", "torchebm": "torchebm LangevinDynamics"}


def measure(target: str, by: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One run's report; `None` if it fails."""
    python = options.torchebm_python if by == "torchebm" else sys.executable
    command = [str(python), str(HERE / "jobs" / "langevin_job.py")]
    command += [f"--target={target}", f"--by={by}", f"--steps={STEPS[target]}"]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def section(rates: dict[tuple[str, str], float], versions: dict[str, str], options: argparse.Namespace) -> str:
    """What goes into the Markdown file."""
    cells = [
        [TITLES[target], *(number(rates.get((target, by), math.nan)) for by in BY)]
        for target in STEPS
    ]  # fmt: skip
    goals = [
        ("neural", "hand", "network: as fast as the loop by hand", 1.0),
        ("double_well", "torchebm", "double well: 4 times torchebm", 4.0),
    ]
    reached = []
    for target, peer, text, least in goals:
        if (target, "pyro_ebm") in rates and (target, peer) in rates:
            ratio = Ratio(rates[target, "pyro_ebm"] / rates[target, peer])
            reached.append([text, str(ratio), "reached" if ratio.value >= least else "**not reached**"])
        else:
            reached.append([text, "", "not measured"])
    used = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    left_out = "" if options.torchebm_python else " torchebm was left out, for want of `--torchebm-python`."
    return f"""\
{machine()}; {used}.

    python benchmarks/langevin.py --torchebm-python PATH --repeats {options.repeats}

Steps of 1,000 chains per cpu-second, unadjusted, float32, one thread, builds not counted, medians of
{options.repeats} runs.{left_out}

{table(["", *BY.values()], cells)}

{table(["to reach", "ratio", ""], reached)}
"""


def main() -> int:
    """Run, print the table, and write it where asked to: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchebm-python", type=Path, help="a Python with torchebm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--core", type=int, help="the core that all runs share; by default the last one")
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    options = parser.parse_args()
    pin(options.core)
    found: dict[tuple[str, str], list[float]] = {}
    versions: dict[str, str] = {}
    for _ in range(options.repeats):
        for target in STEPS:
            for by in BY:
                if by == "torchebm" and options.torchebm_python is None:
                    continue
                report = measure(target, by, options)
                if report is None:
                    continue
                rate = STEPS[target] / report["seconds"]["cpu"]
                found.setdefault((target, by), []).append(rate)
                own = report["versions"]
                versions |= {f"{k} (with torchebm)" if by == "torchebm" and k == "torch" else k: own[k] for k in own}
                print(f"{TITLES[target]}, {BY[by]}: {number(rate)} steps / cpu s", flush=True)
    text = section({key: median(rates) for key, rates in found.items()}, versions, options)
    print(f"\n{text}")
    if options.write is not None:
        write_section(options.write, "Langevin", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
