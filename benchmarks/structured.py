"""Compares structured inference with its peers: chains, belief propagation, exact answers, discrete samplers.

    python benchmarks/structured.py --chain-python PATH --graph-python PATH --thrml-python PATH

Runs `structured_chain.py`, `structured_bp.py` and `structured_gibbs.py` one after another; each says what it measures.
Their peers do not fit into one environment, so each has a Python of its own, and what has none is left out:

- `--chain-python`: pyro_ebm, pytorch-crf, torch-struct and python-crfsuite;
- `--graph-python`: pgmax (with jax 0.4.30) and pgmpy;
- `--thrml-python`: thrml.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run all three, and write their tables: the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chain-python", default=sys.executable, help="a Python with pyro_ebm and peers for chains")
    parser.add_argument("--graph-python", help="a Python with pgmax and pgmpy")
    parser.add_argument("--thrml-python", help="a Python with thrml")
    parser.add_argument("--core", type=int, help="the core that all runs share; by default the last one")
    parser.add_argument("--write", default=str(HERE / "RESULTS.md"), help="the Markdown file for the tables")
    options = parser.parse_args()
    shared = [f"--write={options.write}", *([] if options.core is None else [f"--core={options.core}"])]
    jobs = [
        [options.chain_python, "structured_chain.py"],
        [sys.executable, "structured_bp.py", *_peer("--peer-python", options.graph_python)],
        [sys.executable, "structured_gibbs.py", *_peer("--thrml-python", options.thrml_python)],
    ]
    failed = 0
    for python, script, *more in jobs:
        failed |= subprocess.run([python, str(HERE / script), *more, *shared], check=False).returncode
    return failed


def _peer(name: str, python: str | None) -> list[str]:
    return [] if python is None else [f"{name}={python}"]


if __name__ == "__main__":
    sys.exit(main())
