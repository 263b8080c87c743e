"""Compares samplers over discrete variables with thrml and with published code.

    python benchmarks/structured_gibbs.py
    python benchmarks/structured_gibbs.py --thrml-python PATH --write benchmarks/RESULTS.md

Block Gibbs sweeps of a 64x64 periodic Ising model at K = 0.4, by one chain and by 64, against thrml; and Gibbs with
gradients on the free energy of a 784x500 restricted Boltzmann machine, 100 chains, against the algorithm as it was
published. Every run is a process of its own, on one core; `--thrml-python` names a Python that has thrml, and without
it that is left out. What counts is steps of all chains per second, builds not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import machine, table, write_section
from samplers import ONE_THREAD, Ratio, number, pin

HERE = Path(__file__).parent
# What is run: its title, target, chains, steps, peer, and how many times as fast as the peer it is to be.
CASES = [
    ("Ising 64x64, 1 chain, Gibbs sweeps", "ising", 1, 4000, "thrml", 1.0),
    ("Ising 64x64, 64 chains, Gibbs sweeps", "ising", 64, 500, "thrml", 1.0),
    ("RBM 784x500, 100 chains, Gibbs with gradients", "rbm", 100, 200, "published", 2.5),
]


def measure(target: str, by: str, chains: int, steps: int, python: Path) -> dict[str, Any] | None:
    """One run's report; `None` if it fails."""
    command = [str(python), str(HERE / "jobs" / "gibbs_job.py")]
    command += [f"--target={target}", f"--by={by}", f"--chains={chains}", f"--steps={steps}"]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def section(best: dict[tuple[str, str], dict[str, float]], versions: dict[str, str], repeats: int) -> str:
    """What goes into the Markdown file."""
    rows = []
    for title, _, _, _, peer, least in CASES:
        own, other = best.get((title, "pyro_ebm")), best.get((title, peer))
        if own is None or other is None:
            rows.append([title, *["not measured"] * 5])
            continue
        cpu, wall = Ratio(own["cpu"] / other["cpu"]), Ratio(own["wall"] / other["wall"])
        reached = "reached" if min(cpu.value, wall.value) >= least else "**not reached**"
        rates = [number(own["cpu"]), f"{number(other['cpu'])} ({peer})", str(cpu), str(wall)]
        rows.append([title, *rates, f"{least:g}: {reached}"])
    used = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    head = ["", "pyro_ebm", "peer", "ratio", "ratio by wall", "to reach"]
    return f"""\
{machine()}; {used}.

    python benchmarks/structured_gibbs.py --thrml-python PATH --repeats {repeats}

Steps of all chains per cpu-second, float32, one core, builds not counted, the best of {repeats} runs.

{table(head, rows)}
"""


def main() -> int:
    """Run, print the table, and write it where asked to: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thrml-python", type=Path, help="a Python with thrml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--core", type=int, help="the core that all runs share; by default the last one")
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    options = parser.parse_args()
    pin(options.core)
    best: dict[tuple[str, str], dict[str, float]] = {}
    versions: dict[str, str] = {}
    for _ in range(options.repeats):
        for title, target, chains, steps, peer, _ in CASES:
            for by in ("pyro_ebm", peer):
                python = options.thrml_python if by == "thrml" else Path(sys.executable)
                report = measure(target, by, chains, steps, python) if python is not None else None
                if report is None:
                    continue
                rates = {clock: steps / spent for clock, spent in report["seconds"].items()}
                before = best.setdefault((title, by), rates)
                best[title, by] = {clock: max(rates[clock], before[clock]) for clock in rates}
                versions |= report["versions"]
                print(f"{title}, {by}: {number(rates['cpu'])} steps / cpu s", flush=True)
    text = section(best, versions, options.repeats)
    print(f"\n{text}")
    if options.write is not None:
        write_section(options.write, "Discrete samplers", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
