"""Compares a training step of pyro_ebm with the same loop by hand, and with persistent chains of torchebm.

    python benchmarks/learning_speed.py
    python benchmarks/learning_speed.py --torchebm-python PATH --write benchmarks/RESULTS.md

What is trained is in `jobs/training_job.py`. Every run is a process of its own, on one core; `--torchebm-python` names
a Python that has torchebm, and without it that is left out. What counts is cpu-seconds for a step; the ratios are of
runs next to one another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from report import machine, table, write_section
from samplers import ONE_THREAD, number, pin

HERE = Path(__file__).parent
BY = {"pyro_ebm": "pyro_ebm, PersistentWalkers", "hand": "the same loop by hand", "torchebm": "torchebm, persistent CD"}


# Moves in a step, of ours and by hand, and of torchebm: each pair has as many gradients of all walkers, for a move that
# is accepted or rejected needs one more, where the parameters have changed.
MOVES = ((1, 2), (2, 3))


def measure(by: str, moves: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run's report."""
    python = options.torchebm_python if by == "torchebm" else sys.executable
    command = [str(python), str(HERE / "jobs" / "training_job.py"), f"--by={by}"]
    command += [f"--steps={options.steps}", f"--moves={moves}"]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchebm-python", type=Path, help="a Python with torchebm")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--core", type=int, help="the core that all runs share; by default the last one")
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    options = parser.parse_args()
    pin(options.core)
    found: dict[tuple[int, str], list[float]] = {}
    versions: dict[str, str] = {}
    for _ in range(options.repeats):
        for number_of, (ours, theirs) in enumerate(MOVES):
            for by in BY:
                if by == "torchebm" and options.torchebm_python is None:
                    continue
                report = measure(by, theirs if by == "torchebm" else ours, options)
                times = found.setdefault((number_of, by), [])
                times.append(1e3 * report["seconds"]["cpu"] / options.steps)
                versions |= report["versions"]
                print(f"{BY[by]}, {ours} moves: {times[-1]:.1f} ms", flush=True)
    rows = []
    for (number_of, by), times in sorted(found.items()):
        ours, theirs = MOVES[number_of]
        ratios = [own / other for own, other in zip(found[number_of, "pyro_ebm"], times, strict=True)]
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        moves = theirs if by == "torchebm" else ours
        rows.append([BY[by], str(moves), number(median(times)), "" if by == "pyro_ebm" else ratio])
    used = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    text = f"""\
{machine()}; {used}.

    python benchmarks/learning_speed.py --torchebm-python PATH --repeats {options.repeats}

Milliseconds of the processor for a training step of a network 784-256-256-1, float32, one thread: 128 data, 1,000
walkers. By hand as in pyro_ebm: Langevin steps with the Metropolis correction, walkers with weights, half of them
tracking log Z. torchebm: 1,000 data and chains, not corrected, no weights, no log Z; as many gradients of all chains as
ours, which is one Langevin step more. Medians of {options.repeats} runs, and the ratios of runs next to one another.

{table(["", "moves", "ms a step", "pyro_ebm's to its"], rows)}
"""
    print(f"\n{text}")
    if options.write is not None:
        write_section(options.write, "A training step", text)


if __name__ == "__main__":
    main()
