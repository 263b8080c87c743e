"""Compares the samplers of pyro_ebm with Pyro's NUTS, NumPyro's vectorised NUTS, and BlackJAX's NUTS and ChEES-HMC.

    python benchmarks/samplers.py --peer-python PATH
    python benchmarks/samplers.py --peer-python PATH --quick

Run it with a Python that has pyro_ebm; `--peer-python` names one that has numpyro, blackjax and jax, and without it
those are left out. Every measured run is a process of its own, on one core, in float64, with an empty build cache.
The repeats of all samplers take turns, so that they face the same load of the machine. What a table says is the median
of the repeats; the table goes into a Markdown file together with how it stands with the project's targets.

References:
    Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Rank-normalization, folding, and localization.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from report import machine, table, write_section

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "jobs"))
from targets import TARGETS, Array  # noqa: E402

warnings.simplefilter("ignore")  # ArviZ's, about its future
import arviz as az  # noqa: E402

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "1",
    "PYTHONWARNINGS": "ignore",
}
CHAINS = (1, 4, 64, 1024)
FEW, MANY = (1, 4, 64, 1024), (64, 1024)
LENGTHS = {1: (1000, 1000), 4: (1000, 1000), 64: (500, 1000), 1024: (300, 300)}  # warm-up and draws, by chains
PYRO, PYRO_LENGTH = "pyro-NUTS", (300, 300)
QUICK = {
    "targets": ["eight_schools"],
    "chains": [4, 64],
    "samplers": ["pyro_ebm-NUTS", "pyro_ebm-ChEES", "pyro-NUTS", "numpyro-NUTS"],
    "repeats": 1,
}
CONVERGED = 1.05  # a figure with a greater R-hat says little


@dataclass(frozen=True)
class Sampler:
    """A sampler: its title, the script that runs it, what that script calls it, and where it is run.

    Attributes:
        title: in the tables.
        job: the script.
        name: of the sampler in its library.
        chains: numbers of chains at which it is run.
        peer: whether it needs the peers' Python.
    """

    title: str
    job: str
    name: str
    chains: tuple[int, ...]
    peer: bool


SAMPLERS = {
    "pyro_ebm-NUTS": Sampler("pyro_ebm NUTS", "pyro_ebm_job.py", "NUTS", FEW, False),
    "pyro_ebm-ChEES": Sampler("pyro_ebm ChEES", "pyro_ebm_job.py", "ChEES", MANY, False),
    "pyro_ebm-AdjustedMCLMC": Sampler("pyro_ebm adjusted MCLMC", "pyro_ebm_job.py", "AdjustedMCLMC", MANY, False),
    "pyro-NUTS": Sampler("Pyro NUTS", "pyro_job.py", "NUTS", (1,), False),
    "numpyro-NUTS": Sampler("NumPyro NUTS", "numpyro_job.py", "NUTS", FEW, True),
    "blackjax-NUTS": Sampler("BlackJAX NUTS", "blackjax_job.py", "NUTS", FEW, True),
    "blackjax-ChEES": Sampler("BlackJAX ChEES", "blackjax_job.py", "ChEES", MANY, True),
}
OURS_FOR_MANY = ("pyro_ebm-ChEES", "pyro_ebm-AdjustedMCLMC")


@dataclass(frozen=True)
class Job:
    """One cell of the table: what is run on what, how wide."""

    target: str
    sampler: str
    chains: int

    @property
    def length(self) -> tuple[int, int]:
        """Warm-up transitions and draws of each chain."""
        return PYRO_LENGTH if self.sampler == PYRO else LENGTHS.get(self.chains, (500, 1000))

    def __str__(self) -> str:
        return f"{self.target}, {SAMPLERS[self.sampler].title}, {self.chains:,} chain{'s' if self.chains > 1 else ''}"


@dataclass(frozen=True)
class Row:
    """What one run, or the median of several, says.

    Attributes:
        ess: the smallest bulk ESS over parameters, of the sampling phase.
        r_hat: the largest rank-normalised split R-hat.
        per_cpu_second: ESS per second of processor time, in the sampling phase.
        per_cold_second: ESS per second by the wall clock, from the launch of the process to the last draw.
        per_1k_gradients: ESS per 1,000 gradients as executed.
        build: seconds by the wall clock of everything that is neither import nor transitions.
        cold: seconds by the wall clock from the launch of the process to the last draw.
        notes: remarks.
        failure: why there are no figures.
    """

    ess: float = math.nan
    r_hat: float = math.nan
    per_cpu_second: float = math.nan
    per_cold_second: float = math.nan
    per_1k_gradients: float = math.nan
    build: float = math.nan
    cold: float = math.nan
    notes: str = ""
    failure: str = ""

    @classmethod
    def of(cls, report: dict[str, Any]) -> Row:
        """The row of one run's report."""
        if "failure" in report:
            return cls(failure=report["failure"])
        ess, sampling = report["ess"], report["sampling"]
        return cls(
            ess=ess,
            r_hat=report["r_hat"],
            per_cpu_second=ess / sampling["cpu"],
            per_cold_second=ess * report["cold_draws"] / report["draws"] / report["cold"]["wall"],
            per_1k_gradients=1000 * ess / report["gradients"],
            build=report["build"]["wall"],
            cold=report["cold"]["wall"],
            notes=report["notes"],
        )

    @classmethod
    def median(cls, rows: Sequence[Row]) -> Row:
        """Medians of several runs; where any failed, its failure."""
        failed = [row for row in rows if row.failure]
        if failed or len(rows) == 1:
            return (failed or list(rows))[0]
        numbers = [name for name, value in vars(rows[0]).items() if isinstance(value, (int, float))]
        return cls(**{name: median(getattr(row, name) for row in rows) for name in numbers}, notes=rows[0].notes)


# Running


def launch(job: Job, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one job in a process of its own; its report, with `ess` and `r_hat`, or with `failure` alone."""
    sampler, (warmup, draws) = SAMPLERS[job.sampler], job.length
    python = options.peer_python if sampler.peer else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "draws.npz"
        arguments = {
            "target": job.target,
            "sampler": sampler.name,
            "chains": job.chains,
            "warmup": warmup,
            "draws": draws,
            "seed": seed,
            "save": saved,
            "launched": time.time(),
        }
        command = [str(python), str(HERE / "jobs" / sampler.job)]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        environment = {**os.environ, **ONE_THREAD, "PYRO_EBM_CACHE": str(Path(folder) / "builds")}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=options.limit, check=False
            )
        except subprocess.TimeoutExpired:
            return {"failure": f"not done in {options.limit:.0f} s", "limit": options.limit}
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return {"failure": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
        report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        with np.load(saved) as file:
            parameters = TARGETS[job.target].parameters(dict(file))
    return report | {"draws": parameters.shape[1]} | convergence(parameters)


def convergence(parameters: Array) -> dict[str, float]:
    """The smallest bulk ESS, and the largest rank-normalised split R-hat, of draws `(chains, draws, P)`."""
    columns = [parameters[..., i] for i in range(parameters.shape[-1])]
    ess = min(float(az.ess(column)) for column in columns)
    if len(parameters) == 1:  # ArviZ wants two chains, and splits each: so one is split beforehand
        columns = [column[:, : column.size // 2 * 2].reshape(2, -1) for column in columns]
    return {"ess": ess, "r_hat": max(float(az.rhat(column)) for column in columns)}


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All jobs that were asked for, those of one target and number of chains in a row; Pyro always with one chain."""
    samplers = [name for name in options.samplers if options.peer_python or not SAMPLERS[name].peer]
    jobs = []
    for target in options.targets:
        jobs += [Job(target, PYRO, 1)] if PYRO in samplers else []
        for chains in options.chains:
            jobs += [Job(target, name, chains) for name in samplers if chains in SAMPLERS[name].chains and name != PYRO]
    return jobs


class Results:
    """Reports by job, kept in a file, if one is named, from which a later call goes on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.records = [json.loads(line) for line in path.read_text().splitlines()]

    def __contains__(self, key: tuple[Job, int]) -> bool:
        job, repeat = key
        kept = [record for record in self.records if Job(**record["job"]) == job]
        return any(record["repeat"] == repeat or "failure" in record["report"] for record in kept)

    def add(self, job: Job, repeat: int, report: dict[str, Any]) -> None:
        """Keep a report."""
        self.records.append({"job": vars(job), "repeat": repeat, "report": report})
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(self.records[-1]) + "\n")

    def rows(self) -> dict[Job, Row]:
        """The median row of each job."""
        found: dict[Job, list[Row]] = {}
        for record in self.records:
            found.setdefault(Job(**record["job"]), []).append(Row.of(record["report"]))
        return {job: Row.median(rows) for job, rows in found.items()}

    def counts(self) -> list[int]:
        """How many runs there are of those jobs that end, in order."""
        ended = [Job(**record["job"]) for record in self.records if "failure" not in record["report"]]
        return sorted(ended.count(job) for job in dict.fromkeys(ended))

    def versions(self) -> dict[str, str]:
        """Of all packages that were measured."""
        return {k: v for record in self.records for k, v in record["report"].get("versions", {}).items()}


# Reporting


def number(value: float) -> str:
    """Three significant digits, in figures that a reader takes in."""
    if math.isnan(value):
        return ""
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def r_hat_cell(r_hat: float) -> str:
    """R-hat, bold where it says that the other figures say little."""
    return f"**{r_hat:.2f}**" if r_hat > CONVERGED else f"{r_hat:.3f}"


COLUMNS = ("chains", "sampler", "min ESS / cpu s", "ESS / s, cold", "ESS / 1k gradients", "R-hat", "build s", "cold s")


def tables(rows: dict[Job, Row]) -> str:
    """A table for each target."""
    parts = []
    for name, target in TARGETS.items():
        cells = []
        for job in sorted((job for job in rows if job.target == name), key=_order):
            row, title = rows[job], SAMPLERS[job.sampler].title
            if row.failure:
                cells.append([f"{job.chains:,}", title, row.failure, *[""] * (len(COLUMNS) - 3)])
                continue
            figures = [row.per_cpu_second, row.per_cold_second, row.per_1k_gradients]
            r_hat = r_hat_cell(row.r_hat)
            note = f" ({row.notes})" if row.notes not in ("", "C") else ""
            times = [number(row.build), number(row.cold)]
            cells.append([f"{job.chains:,}", title + note, *map(number, figures), r_hat, *times])
        if cells:
            parts.append(f"#### {target.title}\n\n{table(COLUMNS, cells)}")
    return "\n\n".join(parts)


def _order(job: Job) -> tuple[int, int]:
    return job.chains, list(SAMPLERS).index(job.sampler)


@dataclass(frozen=True)
class Ratio:
    """A ratio on one target.

    Attributes:
        value: the ratio.
        bound: whether the peer did not finish, so that it is at least so much.
        doubtful: whether chains of either had not converged.
    """

    value: float
    bound: bool = False
    doubtful: bool = False

    def __str__(self) -> str:
        return ("≥ " if self.bound else "") + number(self.value) + ("*" if self.doubtful else "")


@dataclass(frozen=True)
class Goal:
    """A target of the project, with what was measured.

    Attributes:
        text: what is to be reached.
        ratio: the ratio on one target, `None` if it was not measured.
        each: what every target is to reach, if anything.
        mean: what the geometric mean is to reach, if anything.
    """

    text: str
    ratio: Callable[[str], Ratio | None]
    each: float | None = None
    mean: float | None = None

    def cells(self) -> list[str]:
        """Its row in the table."""
        found = {name: self.ratio(name) for name in TARGETS}
        values = [ratio.value for ratio in found.values() if ratio is not None]
        shown = ["" if ratio is None else str(ratio) for ratio in found.values()]
        if not values:
            return [self.text, *shown, "", "not measured"]
        mean = math.exp(sum(map(math.log, values)) / len(values))
        reached = (self.each is None or min(values) >= self.each) and (self.mean is None or mean >= self.mean)
        whole = "" if len(values) == len(TARGETS) else f" (on {len(values)} of {len(TARGETS)})"
        return [self.text, *shown, number(mean), ("reached" if reached else "**not reached**") + whole]


def speed_ratio(rows: dict[Job, Row], ours: Sequence[str], chains: int, peer: str, peer_chains: int) -> Any:
    """ESS per cpu-second of the best of `ours` over that of a peer, as a function of the target."""

    def ratio(target: str) -> Ratio | None:
        found = [rows[Job(target, name, chains)] for name in ours if Job(target, name, chains) in rows]
        best = max((row for row in found if not row.failure), key=lambda row: row.per_cpu_second, default=None)
        other = rows.get(Job(target, peer, peer_chains))
        if best is None or other is None:
            return None
        if other.failure:  # as if all its draws had been independent, and the whole time had gone into sampling
            limit = _limit(other.failure)
            job = Job(target, peer, peer_chains)
            doubtful = best.r_hat > CONVERGED
            value = best.per_cpu_second * (limit or math.nan) / (job.chains * job.length[1])
            return Ratio(value, bound=True, doubtful=doubtful) if limit else None
        doubtful = max(best.r_hat, other.r_hat) > CONVERGED
        return Ratio(best.per_cpu_second / other.per_cpu_second, doubtful=doubtful)

    return ratio


def _limit(failure: str) -> float | None:
    words = failure.split()
    return float(words[-2]) if failure.startswith("not done in") else None


def cold_ratio(rows: dict[Job, Row], chains: int) -> Any:
    """Seconds of a cold NumPyro over ours, as a function of the target."""

    def ratio(target: str) -> Ratio | None:
        ours, other = (rows.get(Job(target, name, chains)) for name in ("pyro_ebm-NUTS", "numpyro-NUTS"))
        if ours is None or other is None or ours.failure:
            return None
        limit = _limit(other.failure)
        return Ratio(limit / ours.cold, bound=True) if limit else Ratio(other.cold / ours.cold)

    return ratio


def goals(rows: dict[Job, Row]) -> list[Goal]:
    """The project's targets that are measured here."""
    nuts, many = ("pyro_ebm-NUTS",), OURS_FOR_MANY
    pyro, numpyro, chees = PYRO, "numpyro-NUTS", "blackjax-ChEES"
    best = (*nuts, *many)
    return [
        Goal("NUTS, 4 chains, to Pyro's NUTS: 100 on each", speed_ratio(rows, nuts, 4, pyro, 1), each=100),
        Goal("NUTS, 64 chains, to Pyro's NUTS: 1,000 on each", speed_ratio(rows, nuts, 64, pyro, 1), each=1000),
        Goal("NUTS, 4 chains, to NumPyro's: mean 1", speed_ratio(rows, nuts, 4, numpyro, 4), mean=1),
        *(
            Goal(
                f"NUTS, {chains:,} chains, to NumPyro's: 1 on each, mean 2",
                speed_ratio(rows, nuts, chains, numpyro, chains),
                each=1,
                mean=2,
            )
            for chains in MANY
        ),
        *(
            Goal(
                f"best of ours, {chains:,} chains, to NumPyro's NUTS (for comparison: 1 on each, mean 2)",
                speed_ratio(rows, best, chains, numpyro, chains),
                each=1,
                mean=2,
            )
            for chains in MANY
        ),
        *(
            Goal(
                f"ChEES or adjusted MCLMC, {chains:,} chains, to BlackJAX's ChEES: mean 1",
                speed_ratio(rows, many, chains, chees, chains),
                mean=1,
            )
            for chains in MANY
        ),
        Goal("cold seconds of NumPyro, 4 chains, to ours: 1 on each", cold_ratio(rows, 4), each=1),
    ]


def section(results: Results, options: argparse.Namespace) -> str:
    """What goes into the Markdown file."""
    rows = results.rows()
    short = {name: target.title.split(",")[0] for name, target in TARGETS.items()}
    short |= {"gaussian_diagonal": "Gaussian diagonal", "gaussian_rotated": "Gaussian rotated"}
    versions = ", ".join(f"{name} {number}" for name, number in sorted(results.versions().items()))
    counts = results.counts() or [0]
    repeats = str(counts[-1]) if counts[0] == counts[-1] else f"{counts[0]} or {counts[-1]}"
    lengths = ", ".join(f"{n:,} {'chain' if n == 1 else 'chains'} {w:,} + {d:,}" for n, (w, d) in LENGTHS.items())
    asked = [
        f"--{name} {' '.join(map(str, getattr(options, name)))}"
        for name, default in (("targets", list(TARGETS)), ("chains", list(CHAINS)), ("samplers", list(SAMPLERS)))
        if getattr(options, name) != default
    ]
    command = " ".join(
        [
            "python benchmarks/samplers.py --peer-python PATH",
            *asked,
            f"--repeats {counts[-1]} --limit {options.limit:.0f}",
        ]
    )
    return f"""\
{machine()}; {versions}.

    {command}

One thread, float64, medians of {repeats} {"run" if repeats == "1" else "runs"} of each (a run that is not done within
the limit is not repeated); the machine's other cores were not idle. Warm-up and draws: {lengths};
Pyro, which samples one chain at a time, {PYRO_LENGTH[0]} + {PYRO_LENGTH[1]} with one: as many processes as chains on
one core have the same ESS per cpu-second, so that this figure stands for 4 and 64 chains too. ESS is the smallest
bulk ESS over parameters, the same code for all. "Per cpu s" counts the sampling phase alone; "cold" is by the clock on
the wall, everything included from the launch of the process, with an empty build cache; gradients are counted as
executed, those of chains that wait in lock step included. An R-hat above {CONVERGED} is bold: its ESS says little.

### Against the targets

Ratios of the smallest ESS per cpu-second, ours to the peer's, except where seconds are named; ≥ where the peer was
not done within the limit, counted as if it had made all its draws by then, and all of them independent; * where chains
had not converged (R-hat above {CONVERGED}).

{table(["to reach", *short.values(), "mean", ""], [goal.cells() for goal in goals(rows)])}

### Figures

{tables(rows)}
"""


# The command line


def parse_options(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="a Python with numpyro, blackjax and jax")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--chains", nargs="+", type=int, choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which medians are taken")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a run is given up")
    parser.add_argument("--core", type=int, help="the core that all runs share; by default the last one")
    parser.add_argument("--results", type=Path, help="a file for the reports: runs that it has are not repeated")
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    parser.add_argument("--quick", action="store_true", help="a small part, in less than three minutes")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    return options


def pin(core: int | None) -> None:
    """Keep this process, and those that it launches, on one core, where the system lets it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if core is None else core})


def main() -> int:
    """Run what was asked for, print the tables, and write them where asked to: the exit status."""
    options = parse_options()
    pin(options.core)
    if options.peer_python is None and any(SAMPLERS[name].peer for name in options.samplers):
        print("Without --peer-python, NumPyro and BlackJAX are left out.")
    results, jobs = Results(options.results), jobs_of(options)
    for repeat in range(options.repeats):
        for job in jobs:
            if (job, repeat) in results:
                continue
            started = time.perf_counter()
            report = launch(job, 1000 * repeat + 1, options)
            results.add(job, repeat, report)
            row = Row.of(report)
            said = row.failure or f"{number(row.per_cpu_second)} ESS / cpu s, R-hat {row.r_hat:.3f}"
            print(f"[{time.perf_counter() - started:6.1f} s] {job}: {said}", flush=True)
    text = section(results, options)
    print(f"\n{text}")
    if options.write is not None:
        write_section(options.write, "Samplers", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
