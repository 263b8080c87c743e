"""Measures the samplers of pyro_ebm on a GPU: the targets of `samplers.py` with 64, 1,024 and 16,384 chains.

    python benchmarks/samplers_gpu.py --results gpu.jsonl --write benchmarks/RESULTS.md
    python benchmarks/samplers_gpu.py --device cpu --targets eight_schools --chains 64

What a tick costs is set beside two bounds of the same device, measured in the same process: what it takes to launch as
many empty kernels from a CUDA graph, and what it takes to copy as many bytes as the tick must read and write (its
carry, its random numbers, and what it says). With `--results` cells that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from report import machine, table, write_section
from samplers import TARGETS, convergence, number, r_hat_cell  # and so the folder of jobs is looked in too

from pyro_ebm_job import Phases, model_of  # isort: skip

import pyro

import pyro_ebm
from pyro_ebm._core.program.cuda_graph import CudaGraphProgram, cuda_capture

SAMPLERS = ("NUTS", "ChEES", "AdjustedMCLMC")
LENGTHS = {64: (500, 1000), 1024: (300, 300), 16384: (200, 100)}  # warm-up and draws, by chains
COLUMNS = ("chains", "sampler", "program", "min ESS / s", "R-hat", "µs a tick", "kernels", "of launches", "of copies")
_LAUNCHES, _BYTES, _REPEATS = 200, 2**28, 20


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one repetition of some work that is queued on the device."""
    work()
    wait(device)
    started = time.perf_counter()
    for _ in range(_REPEATS):
        work()
    wait(device)
    return (time.perf_counter() - started) / _REPEATS


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def bounds(device: torch.device) -> dict[str, float]:
    """Seconds that a kernel takes which does nothing, launched from a graph; and that a byte takes, read or written."""
    one, some = torch.zeros(1, device=device), torch.zeros(_BYTES // 8, device=device)
    other = torch.empty_like(some)
    launch = math.nan
    if device.type == "cuda":

        def launches() -> None:
            for _ in range(_LAUNCHES):
                one.add_(1)

        launch = seconds(cuda_capture(launches), device) / _LAUNCHES
    return {"launch": launch, "byte": seconds(lambda: other.copy_(some), device) / (2 * _BYTES)}


def kernels(program: CudaGraphProgram) -> int:
    """How many a tick launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        program._body()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def tick(run: Any, device: torch.device) -> dict[str, float]:
    """What a tick of a finished run's program takes, launches and moves."""
    program = run._program
    if not isinstance(program, CudaGraphProgram):
        return {}
    moved = 2 * sum(leaf.nbytes for leaf in program._carry)  # read and written
    moved += sum(leaf[0].nbytes for leaf in (*program._xs, *program._ys))
    return {"tick": seconds(program._replay, device), "kernels": kernels(program), "bytes": moved}


def measure(target: str, sampler: str, chains: int, device: torch.device, phases: Phases) -> dict[str, Any]:
    """One cell: a run, and what its ticks take."""
    warmup, draws = LENGTHS[chains]
    pyro.set_rng_seed(1)
    before = phases.sampling.wall
    with device:
        model, arguments = model_of(target)
        model = model.to(device) if isinstance(model, torch.nn.Module) else model
        mcmc = pyro_ebm.MCMC(
            getattr(pyro_ebm, sampler)(model),
            num_samples=draws,
            warmup_steps=warmup,
            num_chains=chains,
            compile=True,
            disable_progbar=True,
        )
        mcmc.run(*arguments)
        found = mcmc.get_samples(group_by_chain=True)
    parameters = TARGETS[target].parameters({name: value.cpu().numpy() for name, value in found.items()})
    return {
        "program": mcmc.attrs["program"],
        **convergence(parameters),
        "sampling": phases.sampling.wall - before,
        **tick(mcmc._run, device),
    }


def row(record: dict[str, Any]) -> list[str]:
    """A cell's line of its table."""
    if "failure" in record:
        return [f"{record['chains']:,}", record["sampler"], record["failure"], *[""] * 6]
    line = [f"{record['chains']:,}", record["sampler"], record["program"]]
    line += [number(record["ess"] / record["sampling"]), r_hat_cell(record["r_hat"])]
    if "tick" not in record:
        return [*line, *[""] * 4]
    parts = (record["kernels"] * record["launch"], record["bytes"] * record["byte"])
    shares = [part / record["tick"] for part in parts]
    return [*line, number(1e6 * record["tick"]), str(record["kernels"]), *(f"{100 * share:.0f} %" for share in shares)]


def section(records: list[dict[str, Any]], device: torch.device) -> str:
    """The section of the results."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    rates = ""
    if device.type == "cuda" and records:
        rates = f" ({number(1e6 * records[-1]['launch'])} µs a kernel; {number(1e-9 / records[-1]['byte'])} GB/s)"
    parts = [
        f"""\
{machine()}; {name}; torch {torch.__version__}, float64.

    python benchmarks/samplers_gpu.py --device {device.type}

One run of each. ESS is the smallest bulk ESS over parameters, by seconds of the sampling phase on the wall, draws left
on the device. "Of launches" is the share of a tick that its kernels would take if they did nothing, "of copies" the
share that it would take to copy what it must read and write{rates}."""
    ]
    for target in TARGETS:
        cells = [row(each) for each in records if each["target"] == target]
        if cells:
            parts.append(f"### {TARGETS[target].title}, on a GPU\n\n{table(COLUMNS, cells)}")
    return "\n\n".join(parts)


def parse_options(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--chains", nargs="+", type=int, choices=list(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--minutes", type=float, default=60.0, help="no cell is begun after so many")
    parser.add_argument("--results", type=Path, help="a file for the records: cells that it has are not repeated")
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure what was asked for, print the tables, and write them where asked to: the exit status."""
    options = parse_options()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no GPU: got --device cuda. Use --device cpu to try the script.", file=sys.stderr)
        return 1
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    if options.results is not None and options.results.exists():
        records = [json.loads(line) for line in options.results.read_text().splitlines()]
    started, phases, speeds = time.perf_counter(), Phases(), bounds(device)
    for target in options.targets:
        for chains in options.chains:
            for sampler in options.samplers:
                cell = {"target": target, "sampler": sampler, "chains": chains, "device": options.device}
                late = time.perf_counter() - started > 60 * options.minutes
                if late or any(cell.items() <= record.items() for record in records):
                    continue
                try:
                    found = measure(target, sampler, chains, device, phases)
                except torch.OutOfMemoryError as error:
                    found = {"failure": str(error).splitlines()[0]}
                records.append(cell | speeds | found)
                print(json.dumps(records[-1]), flush=True)
                if options.results is not None:
                    with options.results.open("a") as file:
                        file.write(json.dumps(records[-1]) + "\n")
    text = section([record for record in records if record["device"] == options.device], device)
    print(f"\n{text}")
    if options.write is not None:
        write_section(options.write, "Samplers on a GPU", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
