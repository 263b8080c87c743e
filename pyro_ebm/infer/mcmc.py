"""`MCMC`: runs a kernel, all chains as one program, and keeps what it made."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_ebm._core.errors import InitializationError, SamplingWarning
from pyro_ebm._core.randomness import seeded_generator
from pyro_ebm._core.warn import warn
from pyro_ebm.diagnostics.convergence import convergence, summary_table
from pyro_ebm.infer.anchors import check_anchors
from pyro_ebm.infer.arviz import to_arviz
from pyro_ebm.infer.arviz_files import to_netcdf, to_zarr
from pyro_ebm.infer.initial_points import given_points, is_finite
from pyro_ebm.infer.kernel import AdaptiveKernel, Kernel
from pyro_ebm.infer.model_target import ModelTarget
from pyro_ebm.infer.progress import concerns, show_progress
from pyro_ebm.infer.run_folder import RunFolder
from pyro_ebm.infer.target import Target
from pyro_ebm.mcmc.run import Run
from pyro_ebm.mcmc.settings import Compile, RunSettings

if TYPE_CHECKING:
    from pyro_ebm.diagnostics.inference_data import InferenceData

_PROGRESS_SECONDS = 0.1
# What a crash may lose of a run whose draws are on disk.
_SAVE_SECONDS = 60.0
# A build takes as long as so many ticks of a small model without it, and is worth it by far in so many seconds of a
# large one. It goes by number first, not by the clock, so that the same seed makes the same draws.
_MANY_TICKS, _MANY_SECONDS = 800, 20.0


class MCMC:
    """Runs a kernel: warm-up, then draws, all chains as one batched program in one process.

    The signatures are Pyro's. What Pyro has for its processes (`mp_context`), its one chain at a time (`hook_fn`,
    `transforms`, `potential_fn`) and its tracer (`jit_compile`) has no counterpart here, and validation is always off
    inside.

    Args:
        kernel: a kernel of pyro_ebm with a model: `NUTS(model)`, `ChEES(model)`, `HMC(model)`, ...
        num_samples: draws of each chain.
        warmup_steps: transitions of each chain before them, in which step size and mass matrix adapt; by default
            `num_samples`.
        initial_params: unconstrained starts by site, with or without a leading chain dim.
        num_chains: number of chains; hundreds cost little more than one.
        disable_progbar: hide the progress bar.
        save_params: sites to keep; by default all.
        save_warmup: whether `to_arviz` shall have the draws of the warm-up too.
        thinning: of so many transitions after the warm-up, one is kept: `num_samples * thinning` are made. Its
            `diverging` and `non_finite` tell of all since the one before.
        compile: whether the whole transition is compiled, as one program for all chains: in about two seconds, kept on
            disk for the next time, with the same draws up to rounding. `"auto"` compiles all but short runs, unless
            the model takes long. `True` also tries slower compilers where the fast one does not know an operation, and
            warns if none does.
        draws_to: a new folder where draws are written while they come, for runs larger than memory: an array
            `draws/<name>.npy` for each diagnostic and for `position`, the unconstrained draws. The run itself is kept
            there too, every minute, when it ends and when it is interrupted, so that after a crash `resume(*args)` of
            an `MCMC` made in the same way goes on with it. Draws that need no constraining are read from the disk as
            they are used; `to_netcdf` and `to_zarr` never load them all.

    Raises:
        ValueError: if a number is out of range.

    >>> import pyro, pyro.distributions as dist
    >>> pyro.set_rng_seed(0)
    >>> from pyro_ebm import MCMC, NUTS
    >>> def model(x):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
    >>> mcmc = MCMC(NUTS(model), num_samples=100, warmup_steps=100, num_chains=4, disable_progbar=True)
    >>> mcmc.run(torch.tensor([1.0, 2.0, 3.0]))
    >>> mcmc.get_samples(group_by_chain=True)["mu"].shape
    torch.Size([4, 100])
    """

    def __init__(
        self,
        kernel: Kernel,
        num_samples: int,
        warmup_steps: int | None = None,
        initial_params: Mapping[str, Tensor] | None = None,
        num_chains: int = 1,
        *,
        disable_progbar: bool = False,
        save_params: Sequence[str] | None = None,
        save_warmup: bool = False,
        thinning: int = 1,
        compile: bool | Literal["auto"] = "auto",
        draws_to: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"MCMC: got a {type(kernel).__name__}, expected a kernel of pyro_ebm: NUTS(model), "
                "ChEES(model), HMC(model) or another."
            )
        for name, value, least in (
            ("num_samples", num_samples, 1),
            ("num_chains", num_chains, 1),
            ("thinning", thinning, 1),
        ):
            if value < least:
                raise ValueError(f"MCMC: got {name} {value}, expected at least {least}.")
        if warmup_steps is not None and warmup_steps < 0:
            raise ValueError(f"MCMC: got warmup_steps {warmup_steps}, expected at least 0.")
        if compile not in (True, False, "auto"):
            raise ValueError(f'MCMC: got compile {compile!r}, expected True, False or "auto".')
        self.kernel = kernel
        self.num_samples = num_samples
        self.warmup_steps = num_samples if warmup_steps is None else warmup_steps
        self.initial_params = initial_params
        self.num_chains = num_chains
        self.disable_progbar = disable_progbar
        self.save_params = save_params
        self.save_warmup = save_warmup
        self.thinning = thinning
        self.compile = compile
        self._folder = RunFolder(draws_to) if draws_to is not None else None
        self.run_time = 0.0
        self._target: Target | None = None
        self._run: Run | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._samples: dict[str, Tensor] | None = None

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Run the chains from new starts. The arguments are the model's.

        Ctrl-C ends the run early and keeps the draws made so far; `resume` goes on.

        Raises:
            BatchingError: if the model cannot be run for many chains at once.
            FileExistsError: if there is a run in the folder `draws_to` already.
            InitializationError: if no finite starts are found.
            OSError: if draws cannot be written to that folder, have no room there, or another run is under way there.
            UnnormalizedError: if a density of the model lacks a log Z that is not a constant.
            AnchorError: at the end, if frozen walkers are too far from the draws of the parameters of their energy.
        """
        target = self._build(args, kwargs)
        if self._folder is not None:
            self._folder.claim(self._num_bytes(target))
        if self.initial_params is None:
            position = target.initial_points(self.kernel.init_strategy, self.num_chains)
        else:
            position = given_points(self.initial_params, target.raveler, self.num_chains).to(target.like)
            finite = is_finite(target.log_density, position)
            if not bool(finite.all()):
                raise InitializationError(
                    f"initial_params: got starts of chains {(~finite).nonzero().flatten().tolist()} where the density "
                    "or its gradient is not finite, expected finite ones. Move them inside the support."
                )
        self._run = self._make_run(target, position, self._how_to_compile(target, position))
        self._target, self._loaded = target, None
        self.run_time = 0.0
        self._drive()

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Go on with a run that was interrupted, loaded by `load_state_dict`, or left in the folder `draws_to`.

        It goes on to the very draws it would have made.

        Args:
            *args: the model's arguments; after an interruption they may be left out.
            **kwargs: likewise.

        Raises:
            RuntimeError: if there is nothing to go on with.
            ValueError: if the saved run does not fit the model.
        """
        if self._loaded is None and self._run is None and self._folder is not None:
            self.load_state_dict(self._folder.load())
        if self._loaded is not None:
            target = self._build(args, kwargs)
            if dict(self._loaded["sites"]) != {n: list(s) for n, s in target.raveler.shapes.items()}:
                raise ValueError(
                    f"MCMC.resume: got a saved run over sites {self._loaded['sites']}, expected those of the model: "
                    f"{ {n: list(s) for n, s in target.raveler.shapes.items()} }. Use the model it was saved from."
                )
            if self._folder is not None:
                self._folder.admit(self._loaded.get("run_id"), self._num_bytes(target))
            like = target.like.expand(self.num_chains, -1)
            saved = self.compile == "auto"  # what was chosen by the clock is not chosen again
            run = self._make_run(target, like, self._loaded["compile"] if saved else self._how_to_compile(target, like))
            run.load_state_dict(self._loaded["run"])
            self._run, self._target = run, target
            self.run_time, self._loaded = self._loaded["run_time"], None
        elif self._run is None:
            raise RuntimeError("MCMC.resume: there is no run to go on with. Call run or load_state_dict first.")
        elif args or kwargs:
            raise RuntimeError("MCMC.resume: the run goes on with its own arguments; leave them out, or call run(...).")
        self._drive()

    def _build(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        target = self.kernel.target(args, kwargs)
        if target.concern is not None:
            warn(target.concern, SamplingWarning)
        unknown = set(self.save_params or ()) - set(target.structure.latents)
        if unknown:
            raise ValueError(
                f"MCMC: got save_params {sorted(unknown)}, expected some of {sorted(target.structure.latents)}."
            )
        return target

    def _make_run(self, target: Target, position: Tensor, compile: Compile) -> Run:
        settings = RunSettings(
            num_samples=self.num_samples,
            warmup_steps=self.warmup_steps,
            save_warmup=self.save_warmup,
            thinning=self.thinning,
            compile=compile,
            subsamples=target.subsamples,
            folder=self._folder.path if self._folder is not None else None,
        )
        settings = self.kernel.configure(settings, target, self.num_chains)
        return Run(self.kernel.algorithm(), target.log_density, position, seeded_generator(position.device), settings)

    def _num_bytes(self, target: Target) -> int:
        """What the draws take on disk, but for their diagnostics."""
        draws = self.num_samples + (self.warmup_steps if self.save_warmup else 0)
        return self.num_chains * draws * target.like.nbytes

    def _how_to_compile(self, target: Target, position: Tensor) -> Compile:
        algorithm = self.kernel.algorithm()
        if target.concern is not None or algorithm.eager or self.compile is False:
            return "no"
        if self.compile is True:
            return "yes"
        transitions = algorithm.num_steps * (self.warmup_steps + self.num_samples * self.thinning)
        ticks = algorithm.usual_ticks * transitions
        return "fast" if ticks >= _MANY_TICKS or ticks * _seconds(target, position) >= _MANY_SECONDS else "no"

    def _drive(self) -> None:
        run = self._require_run()
        self._samples = None
        if self._folder is not None:
            self._folder.lock()
        self._keep()
        begin = saved = time.perf_counter()
        shown = -_PROGRESS_SECONDS
        total = self.warmup_steps + self.num_samples * self.thinning
        bar = tqdm(total=total, initial=run.transitions, disable=self.disable_progbar)
        try:
            while not run.finished:
                run.advance()
                if time.perf_counter() - shown > _PROGRESS_SECONDS:
                    shown = time.perf_counter()
                    show_progress(bar, run)
                if time.perf_counter() - saved > _SAVE_SECONDS:
                    self._keep()
                    saved = time.perf_counter()
            show_progress(bar, run)
        except KeyboardInterrupt:
            kept = int(run.draws.counts.min().clamp(max=self.num_samples)) if not run.warming_up else 0
            warn(
                f"interrupted: {kept} of {self.num_samples} draws of each of {self.num_chains} chains are kept; "
                "resume() goes on.",
                SamplingWarning,
            )
        finally:
            bar.close()
            self.run_time += time.perf_counter() - begin
            self._keep()
            if self._folder is not None:
                self._folder.unlock()
        if self.compile is True and run.concerns:
            warn(
                f"compile=True: the run is {run.rung}, not compiled as a whole: {'; '.join(run.concerns)}.",
                SamplingWarning,
            )
        for message in concerns(run):
            warn(message, SamplingWarning)
        if run.finished and isinstance(self._target, ModelTarget):
            check_anchors(self._target, self.recorded()["position"])

    def _keep(self) -> None:
        """Keep the run where its draws are."""
        if self._folder is not None:
            self._folder.save(self.state_dict())

    # -- results -----------------------------------------------------------------------------------------------------

    def _require_run(self) -> Run:
        if self._loaded is not None:
            raise RuntimeError("MCMC: a saved run is loaded. Call resume(*args) with the model's arguments first.")
        if self._run is None:
            raise RuntimeError("MCMC: there are no draws yet. Call run(...) first.")
        return self._run

    def recorded(self, *, warmup: bool = False) -> dict[str, Tensor]:
        """What was recorded: the unconstrained `position` `(chains, draws, dim)` and diagnostics `(chains, draws)`.

        Args:
            warmup: whether of the warm-up: empty unless `save_warmup`.
        """
        run = self._require_run()
        recorded = (run.warmup.draws if warmup else run.draws).draws()
        if recorded and recorded["position"].shape[1]:
            return recorded
        if not warmup:
            raise RuntimeError("MCMC: there are no draws yet: the run was interrupted before the first. Call resume().")
        return {}

    @property
    def target(self) -> Target:
        """The batched density that was sampled."""
        self._require_run()
        return cast(Target, self._target)

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        """The draws, constrained, by site.

        Args:
            num_samples: this many drawn at random, with replacement, from the draws (of each chain, if grouped).
            group_by_chain: whether chains have a dim of their own.

        Returns:
            `(chains * draws, *shape)`, or `(chains, draws, *shape)` if grouped.
        """
        if self._samples is None:
            self._samples = self.constrain(self.recorded()["position"])
        samples = self._samples if group_by_chain else {n: v.flatten(0, 1) for n, v in self._samples.items()}
        if num_samples is None:
            return dict(samples)
        dim = 1 if group_by_chain else 0
        count = next(iter(samples.values())).shape[dim]
        index = torch.randint(count, (num_samples,))
        return {n: v.index_select(dim, index.to(v.device)) for n, v in samples.items()}

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """Unconstrained `(*lead, dim)` to the values of the sites that are kept, `(*lead, *shape)`."""
        sites = self.target.constrain(position)
        return {name: v for name, v in sites.items() if self.save_params is None or name in self.save_params}

    def sample_discrete(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """The discrete sites, which were summed out: an exact draw of them for each draw of the others.

        Draws are made anew at each call, from torch's generator. Arrays of `sample_graph` come as a whole.

        Args:
            group_by_chain: whether chains have a dim of their own.

        Returns:
            By site `(chains * draws, *shape)`, or `(chains, draws, *shape)` if grouped; empty if no site is discrete.
        """
        drawn = self.target.sample_discrete(self.recorded()["position"])
        return drawn if group_by_chain else {name: value.flatten(0, 1) for name, value in drawn.items()}

    def sample_stats(self) -> dict[str, Tensor]:
        """Diagnostics of each draw, `(chains, draws)`, by ArviZ's names: `lp`, `diverging`, `acceptance_rate`, ..."""
        return {name: value for name, value in self.recorded().items() if name != "position"}

    def warmup_draws(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draws by site and diagnostics of the warm-up, each `(chains, draws, ...)`; empty unless `save_warmup`."""
        recorded = self.recorded(warmup=True)
        return (self.target.constrain(recorded.pop("position")), recorded) if recorded else ({}, {})

    @property
    def inverse_mass_matrix(self) -> Tensor:
        """The adapted inverse mass matrix of all sites side by side: its diagonal `(dim,)`, or whole `(dim, dim)`."""
        return self._require_run().metric.inverse_mass_matrix

    def diagnostics(self) -> dict[str, Any]:
        """R-hat and ESS of each site, and divergences and acceptance of each chain, as Pyro lays them out.

        Returns:
            `{site: {"n_eff": array, "r_hat": array}, ..., "divergences": {"chain 0": [draw, ...], ...},
            "acceptance rate": {"chain 0": rate, ...}}`.
        """
        stats = self.sample_stats()
        table: dict[str, Any] = dict(convergence(self.get_samples(group_by_chain=True)))
        table["divergences"] = {
            f"chain {i}": row.nonzero().flatten().tolist() for i, row in enumerate(stats["diverging"])
        }
        table["acceptance rate"] = {
            f"chain {i}": float(rate) for i, rate in enumerate(stats["acceptance_rate"].mean(-1))
        }
        return table

    def summary(self, prob: float = 0.9) -> None:
        """Print ArviZ's table of means, intervals, Monte Carlo errors, ESS and R-hat, and the number of divergences."""
        print(summary_table(to_arviz(self, log_likelihood=False), prob))
        print(f"\nNumber of divergences: {int(self._require_run().num_divergences.sum())}")

    def to_arviz(self, **options: Any) -> InferenceData:
        """The run as ArviZ's `InferenceData`: see `pyro_ebm.to_arviz`."""
        return to_arviz(self, **options)

    def to_netcdf(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write `to_arviz(**options)` to a netCDF file, for `arviz.from_netcdf(path)`, without loading all draws."""
        to_netcdf(self, path, **options)

    def to_zarr(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write `to_arviz(**options)` to a zarr store, without loading all draws; it needs zarr."""
        to_zarr(self, path, **options)

    @property
    def attrs(self) -> dict[str, Any]:
        """What to keep of the run beside its draws."""
        run = self._require_run()
        return {
            "inference_library": "pyro_ebm",
            "kernel": self.kernel.algorithm().name,
            "sampling_time": self.run_time,
            "tuning_steps": self.warmup_steps,
            "step_size": float(run.step_size),
            **({"target_accept_prob": float(run.warmup.target)} if isinstance(self.kernel, AdaptiveKernel) else {}),
            **run.learned,
            "chains_moved": int((run.warmup.moved > 0).sum()),
            "program": run.rung,
        }

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The whole run in tensors, numbers and strings, for `torch.save`; draws in a folder `draws_to` stay there.

        `load_state_dict` and `resume` go on with it.
        """
        run = self._require_run()
        return {
            **self._settings(),
            "sites": {name: list(shape) for name, shape in self.target.raveler.shapes.items()},
            "run_time": self.run_time,
            "compile": run.settings.compile,
            "run_id": self._folder.run_id if self._folder is not None else None,
            "run": run.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in a saved run; `resume(*args)` then goes on with it, to the very draws it would have made.

        Raises:
            ValueError: if it was saved from another kind of run.
        """
        for name, value in self._settings().items():
            if state.get(name) != value:
                raise ValueError(
                    f"MCMC.load_state_dict: got a run with {name} {state.get(name)}, expected {value}. "
                    "Make the MCMC as the one that was saved."
                )
        self._loaded = state

    def _settings(self) -> dict[str, Any]:
        """What decides the draws, beside the model and the random state."""
        return {
            "kernel": self.kernel.algorithm().name,
            "num_chains": self.num_chains,
            "num_samples": self.num_samples,
            "warmup_steps": self.warmup_steps,
            "save_warmup": self.save_warmup,
            "thinning": self.thinning,
            **self.kernel.settings(),
        }


def _seconds(target: Target, position: Tensor) -> float:
    """What the log density takes at `position`, `(chains, dim)`."""
    minibatch = tuple(each.first(position.device) for each in target.subsamples)
    started = time.perf_counter()
    target.log_density(position, *minibatch)
    return time.perf_counter() - started
