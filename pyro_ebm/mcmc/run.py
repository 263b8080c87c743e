"""A run of many chains as one batched program: warm-up, then sampling, a block of ticks at a time.

Between blocks the whole run is in tensors that can be saved: a run that is stopped, saved, loaded and continued makes
the same draws as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal
from pyro_ebm.mcmc.algorithm import Algorithm, State
from pyro_ebm.mcmc.covariance import PooledCovariance
from pyro_ebm.mcmc.metric import Metric, unit_metric
from pyro_ebm.mcmc.recorder import Recorder
from pyro_ebm.mcmc.step_size import DualAveraging, reasonable_step_size
from pyro_ebm.mcmc.windows import warmup_windows

# Ticks between two looks at the counters, each of which synchronises with the device.
TICKS_PER_BLOCK = 8


@dataclass(frozen=True)
class RunSettings:
    """How long a run is, and what adapts.

    Attributes:
        num_samples: draws of each chain.
        warmup_steps: transitions of each chain before them, at the least.
        step_size: the first leapfrog step size, in units of the metric.
        adapt_step_size: whether it adapts.
        adapt_metric: whether the metric adapts.
        dense_metric: whether the metric is a full matrix.
        save_warmup: whether to keep the draws of the warm-up.
    """

    num_samples: int
    warmup_steps: int
    step_size: float = 1.0
    adapt_step_size: bool = True
    adapt_metric: bool = True
    dense_metric: bool = False
    save_warmup: bool = False


class Run:
    """Many chains as one program.

    Args:
        algorithm: the sampler.
        log_density: the log density with its gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`.
        position: where the chains start, `(chains, dim)`.
        generator: where the randomness comes from.
        settings: how long, and what adapts.

    Attributes:
        metric: the present metric.
        step_size: the leapfrog step size that the last window found, `()`.
        draws: the recorder of draws; `warmup_draws` that of the warm-up.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        log_density: LogDensity,
        position: Tensor,
        generator: Generator,
        settings: RunSettings,
    ) -> None:
        chains, dim = position.shape
        self.algorithm, self.settings, self.generator = algorithm, settings, generator
        self._log_density = log_density
        self._windows = warmup_windows(settings.warmup_steps, chains, adapt_metric=settings.adapt_metric)
        self._window = 0
        self.metric = unit_metric(dim, dense=settings.dense_metric, like=position)
        self.step_size = torch.tensor(settings.step_size, dtype=position.dtype, device=position.device)
        self.draws = Recorder(chains, settings.num_samples, position.device)
        self.warmup_draws = Recorder(chains, settings.warmup_steps if settings.save_warmup else 0, position.device)
        self._in_window = torch.zeros(chains, dtype=torch.long, device=position.device)
        self._in_warmup = torch.zeros_like(self._in_window)
        self._diverged = torch.zeros_like(self._in_window)
        self._acceptance = torch.zeros_like(self.step_size)
        self._averaging = DualAveraging.start(self.step_size, self.num_chains)
        self._covariance = PooledCovariance.start(dim, dense=settings.dense_metric, like=position)
        self._state: State
        self._enter_window(position)

    # -- what a caller may ask between blocks ------------------------------------------------------------------------

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return self._in_window.shape[0]

    @property
    def warming_up(self) -> bool:
        """Whether the run is still in its warm-up."""
        return self._window < len(self._windows)

    @property
    def finished(self) -> bool:
        """Whether every chain has all its draws."""
        return not self.warming_up and int(self.draws.counts.min()) >= self.settings.num_samples

    @property
    def transitions(self) -> int:
        """Mean number of transitions so far, out of `warmup_steps + num_samples`."""
        warmup = self._in_warmup.clamp(max=self.settings.warmup_steps).double().mean()
        sampling = self.draws.counts.clamp(max=self.settings.num_samples).double().mean()
        return int(warmup + sampling)

    @property
    def position(self) -> Tensor:
        """Where the chains are, `(chains, dim)`."""
        return self.metric.to_position(self._state.position)

    @property
    def current_step_size(self) -> Tensor:
        """The leapfrog step size of trajectories that start now, `()`."""
        return self._averaging.step_size if self.warming_up and self.settings.adapt_step_size else self.step_size

    @property
    def mean_acceptance(self) -> float:
        """Mean acceptance probability of the last transitions."""
        return float(self._acceptance)

    @property
    def num_divergences(self) -> Tensor:
        """Divergent transitions since the warm-up, `(chains,)`."""
        return self._diverged

    # -- running -----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Do a block of ticks. An exception, Ctrl-C included, leaves the run as it was before the block."""
        before = vars(self).copy()
        draws, warmup_draws = self.draws.counts, self.warmup_draws.counts
        random_state = self.generator.get_state()
        try:
            for _ in range(TICKS_PER_BLOCK):
                self._tick()
            if self.warming_up:
                self._end_window_if_due()
        except BaseException:
            vars(self).update(before)
            self.draws.counts, self.warmup_draws.counts = draws, warmup_draws
            self.generator.set_state(random_state)
            raise

    def _tick(self) -> None:
        adapting = self.warming_up and self.settings.adapt_step_size
        self._state, info = self.algorithm.step(
            self._density,
            self._state,
            self.algorithm.draw_randomness(self._state.position, self.generator),
            self.algorithm.parameters(self.current_step_size, self.warming_up),
        )
        finished = info.done.sum()
        mean = torch.where(info.done, info.acceptance_rate, 0).sum() / finished.clamp(min=1)
        self._acceptance = torch.where(finished > 0, mean, self._acceptance)
        values = {name: value for name, value in info._asdict().items() if name != "done"}
        if not self.warming_up:
            self.draws.record(info.done, {"position": self.position, **values})
            kept = info.done & (self.draws.counts <= self.settings.num_samples)
            self._diverged = self._diverged + (kept & info.diverging)
            return
        self._in_window = self._in_window + info.done
        self._in_warmup = self._in_warmup + info.done
        if self.settings.save_warmup:
            self.warmup_draws.record(info.done, {"position": self.position, **values})
        # A chain that is lost, or diverges wherever it goes, rejects in every tick: it would ruin the pool.
        sound = info.done & torch.isfinite(info.lp)
        if adapting:
            self._averaging = self._averaging.update(info.acceptance_rate, sound, self.algorithm.target_accept_prob)
        if self._windows[self._window].renews_metric:
            self._covariance = self._covariance.update(self.position, sound & ~info.diverging)

    def _end_window_if_due(self) -> None:
        """Windows end by the *median* count, so that no chain waits, and no lost one hurries the others.

        The last one lets every chain make its transitions.
        """
        window, last = self._windows[self._window], self._window == len(self._windows) - 1
        due = int(self._in_window.median()) >= window.length
        if last:
            due = due and int(self._in_warmup.min()) >= self.settings.warmup_steps
        if not due:
            return
        position = self.position
        if self.settings.adapt_step_size:
            self.step_size = self._averaging.final_step_size
        if window.renews_metric:
            self.metric = self._covariance.metric()
        self._window += 1
        self._enter_window(position)

    def _enter_window(self, position: Tensor) -> None:
        """Start fresh trajectories at `position`, with the present metric.

        While adapting, with a new first step size.
        """
        whitened = self.metric.to_whitened(position)
        self._density = self.metric.whiten(self._log_density)
        if self.warming_up and self.settings.adapt_step_size:
            momentum = normal(whitened.shape, whitened, self.generator)
            self.step_size = reasonable_step_size(self._density, whitened, momentum, self.step_size)
            self._averaging = DualAveraging.start(self.step_size, self.num_chains)
        if self.warming_up and self._windows[self._window].renews_metric:
            dim = position.shape[-1]
            self._covariance = PooledCovariance.start(dim, dense=self.settings.dense_metric, like=position)
        self._in_window = torch.zeros_like(self._in_window)
        self._state = self.algorithm.init(
            self._density,
            whitened,
            self.algorithm.parameters(self.step_size, self.warming_up),
            self.algorithm.draw_randomness(whitened, self.generator),
        )

    # -- saving ------------------------------------------------------------------------------------------------------

    _SAVED = ("_window", "step_size", "_in_window", "_in_warmup", "_diverged", "_acceptance")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next block depends on, and the draws: tensors and numbers only."""
        return {
            **{name.lstrip("_"): getattr(self, name) for name in self._SAVED},
            "metric": self.metric.scale,
            "averaging": self._averaging._asdict(),
            "covariance": self._covariance._asdict(),
            "state": self._state._asdict(),
            "draws": self.draws.state_dict(),
            "warmup_draws": self.warmup_draws.state_dict(),
            "random_state": self.generator.get_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved; the run goes on from there."""
        device = self.step_size.device

        def moved(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device) for name, value in fields.items()}

        for name in self._SAVED:
            value = saved[name.lstrip("_")]
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        self.metric = Metric(saved["metric"].to(device))
        self._density = self.metric.whiten(self._log_density)
        self._averaging = DualAveraging(**moved(saved["averaging"]))
        self._covariance = PooledCovariance(**moved(saved["covariance"]))
        self._state = self.algorithm.restore(**moved(saved["state"]))
        self.draws.load_state_dict(saved["draws"])
        self.warmup_draws.load_state_dict(saved["warmup_draws"])
        self.generator.set_state(saved["random_state"].cpu())
