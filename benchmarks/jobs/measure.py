"""What all jobs do alike: arguments, clocks, and the one line of JSON that each prints last."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Seconds:
    """Seconds by the clock on the wall, and of the processor, those of finished child processes included."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)


def now() -> Seconds:
    """Both clocks: differences count."""
    times = os.times()
    return Seconds(time.perf_counter(), time.process_time() + times.children_user + times.children_system)


def since_launch(options: argparse.Namespace) -> Seconds:
    """From the launch of this process until now: call it after the imports."""
    return Seconds(time.time() - options.launched, time.process_time())


def parse_options(description: str | None) -> argparse.Namespace:
    """The arguments of a job."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--sampler", required=True, help="which of the library's samplers")
    parser.add_argument("--chains", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--draws", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--save", type=Path, required=True, help="the .npz file for the draws")
    parser.add_argument("--launched", type=float, default=time.time(), help="time.time() when the job was launched")
    return parser.parse_args()


@dataclass(frozen=True)
class Measured:
    """What a job reports.

    Attributes:
        imports: from the launch of the process until the library is imported.
        build: everything before the chains move, wherever it happens: reading the model, tracing, compiling.
        warmup: the rest of the warm-up.
        sampling: the sampling phase whose draws are saved.
        cold: the whole of a user's first run, imports and build included, without what the measurement adds.
        cold_draws: draws of each chain in the cold run.
        gradients: that the sampling phase has executed, summed over chains; in lock step, idle chains count too.
        notes: what else the table should say.
    """

    imports: Seconds
    build: Seconds
    warmup: Seconds
    sampling: Seconds
    cold: Seconds
    cold_draws: int
    gradients: int
    notes: str = ""


def report(options: argparse.Namespace, measured: Measured, draws: Mapping[str, Any], packages: list[str]) -> None:
    """Save the draws, `(chains, draws, *shape)` by site, and print the line."""
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in draws.items()}
    np.savez(options.save, **arrays)
    print(json.dumps({**asdict(measured), "versions": {name: version(name) for name in packages}}), flush=True)
