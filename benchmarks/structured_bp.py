"""Compares belief propagation with PGMax, and exact answers of a spin glass with pgmpy.

    python benchmarks/structured_bp.py --peer-python PATH
    python benchmarks/structured_bp.py --peer-python PATH --write benchmarks/RESULTS.md

Run it with a Python that has pyro_ebm; `--peer-python` names one that has pgmax (with a jax that it works with, such as
0.4.30) and pgmpy. Every run is a process of its own, on one core; runs take turns, so that they face the same load.
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
from samplers import ONE_THREAD, Ratio, pin

HERE = Path(__file__).parent
TASKS = {
    "sum-product": "sum-product, 32x32, 8 states, 100 iterations",
    "max-product": "max-product, the same",
    "log Z": "10x10 spin glass, log Z",
    "marginals": "10x10 spin glass, all marginals",
    "mode": "10x10 spin glass, mode",
    "1000 draws": "10x10 spin glass, 1,000 exact draws",
}
PEERS = {"sum-product": "pgmax", "max-product": "pgmax", "log Z": "pgmpy", "marginals": "pgmpy", "mode": "pgmpy"}
LEAST = {"sum-product": 3.0, "log Z": 1.0, "marginals": 1.0}  # times as fast as the peer


def measure(by: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One run's report; `None` if it fails."""
    python = sys.executable if by == "pyro_ebm" else str(options.peer_python)
    environment = {**os.environ, **ONE_THREAD, "JAX_ENABLE_X64": "0"}
    command = [python, str(HERE / "jobs" / "structured_job.py"), f"--by={by}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def section(
    seconds: dict[tuple[str, str], float], apart: dict[str, float], versions: dict[str, str], repeats: int
) -> str:
    """What goes into the Markdown file."""
    rows = []
    for task, title in TASKS.items():
        own, peer = seconds.get((task, "pyro_ebm"), math.nan), PEERS.get(task, "")
        other = seconds.get((task, peer), math.nan)
        said = "out of memory" if math.isinf(other) else "" if math.isnan(other) else f"{other * 1e3:.1f}"
        ratio = Ratio(other / own) if math.isfinite(other / own) else None
        goal = LEAST.get(task)
        reached = "" if ratio is None or goal is None else "reached" if ratio.value >= goal else "**not reached**"
        wanted = "" if goal is None else f"{goal:g}"
        rows.append([title, f"{own * 1e3:.1f}", peer, said, "" if ratio is None else str(ratio), wanted, reached])
    used = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    agree = ", ".join(f"{task} {gap:.0e}" for task, gap in apart.items())
    return f"""\
{machine()}; {used}.

    python benchmarks/structured_bp.py --peer-python PATH --repeats {repeats}

Milliseconds of the processor, one thread, builds not counted, medians of {repeats} runs. PGMax and pyro_ebm make
the same iterations; ours also measure the residual of each, and make beliefs and Bethe's log Z of the last. pgmpy's
log Z is the sum of a marginal that it leaves unnormalised: its own does not fit into 6 GB. Answers differ at most by
{agree}.

{table(["", "pyro_ebm", "peer", "peer's", "times as fast", "to reach", ""], rows)}
"""


def main() -> int:
    """Run, print the table, and write it where asked to: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="a Python with pgmax and pgmpy")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--core", type=int, help="the core that all runs share; by default the last one")
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    options = parser.parse_args()
    pin(options.core)
    found: dict[tuple[str, str], list[float]] = {}
    answers: dict[tuple[str, str], list[float]] = {}
    versions: dict[str, str] = {}
    for _ in range(options.repeats):
        for by in ("pyro_ebm", *(("pgmax", "pgmpy") if options.peer_python else ())):
            report = measure(by, options)
            if report is None:
                continue
            versions |= report["versions"]
            for task, (time, answer) in report["found"].items():
                found.setdefault((task, by), []).append(time)
                answers[task, by] = answer
                print(f"{TASKS[task]}, {by}: {time * 1e3:.1f} ms", flush=True)
    apart = {
        task: max(abs(a - b) for a, b in zip(answers[task, "pyro_ebm"], answers[task, peer], strict=True))
        for task, peer in PEERS.items()
        if answers.get((task, peer)) and (task, "pyro_ebm") in answers
    }
    text = section({key: median(times) for key, times in found.items()}, apart, versions, options.repeats)
    print(f"\n{text}")
    if options.write is not None:
        write_section(options.write, "Graphs", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
