"""The warm-up: windows of transitions, and what a run learns from them beside its step size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils import _pytree as pytree

from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.chain_mass import ChainMass
from pyro_ebm.mcmc.covariance import MetricEstimator, PooledVariance
from pyro_ebm.mcmc.metric import Metric
from pyro_ebm.mcmc.protocols import Adaptation
from pyro_ebm.mcmc.reach import Reach
from pyro_ebm.mcmc.recorder import Recorder
from pyro_ebm.mcmc.rejections import Rejections
from pyro_ebm.mcmc.settings import RunSettings
from pyro_ebm.mcmc.windows import Window, warmup_windows

# Transitions are counted in parts, one for each of their steps.
_ROUNDING = 1e-6
# So many windows, the last two with a metric and one for the step size, tell of sampling; in those before them chains
# may still be on their way to the bulk.
_SETTLED_WINDOWS = 3
# A log density so many median deviations below the median is not one of the bulk.
_FAR = 10.0


class Warmup:
    """Counts the transitions of each window, and learns the metric, the target acceptance and the reach of a draw.

    Args:
        algorithm: the sampler.
        position: where the chains start, `(chains, dim)`.
        settings: those of the run.

    Attributes:
        in_window: transitions that each chain has made in the present window, with parts of one, `(chains,)`.
        target: the acceptance probability that the step size adapts to, `()`.
        reach: how far a draw goes from the one before it.
        moved: how often each chain was left behind, and moved to where another was, `(chains,)`.
        draws: the recorder of the draws.
    """

    def __init__(self, algorithm: Algorithm, position: Tensor, settings: RunSettings) -> None:
        self._algorithm, self._settings = algorithm, settings
        self._shape, device = position.shape, position.device
        self._windows = warmup_windows(settings.warmup_steps, len(position), adapt_metric=settings.adapt_metric)
        self._window = 0
        self._before = torch.zeros(len(position), dtype=torch.long, device=device)  # transitions in earlier windows
        self.target = torch.tensor(algorithm.target_accept_prob, dtype=position.dtype, device=device)
        learns = algorithm.learns if len(position) < algorithm.learns_below else None
        self.reach = Reach(learns, algorithm.num_steps, position)
        self.moved = torch.zeros_like(self._before)
        saved = settings.warmup_steps if settings.save_warmup else 0
        folder = settings.folder / "warmup" if settings.folder is not None else None
        self.draws = Recorder(len(position), saved, device, algorithm.num_steps, folder)
        self._no_draws: MetricEstimator = settings.estimator or PooledVariance.start(torch.zeros_like(position[0]))
        self._begin_window()

    def _begin_window(self) -> None:
        nowhere = self.target.new_zeros(()).expand(self._shape)
        self.in_window = torch.zeros(len(self._before), dtype=torch.double, device=self._before.device)
        self._estimator = self._no_draws
        self._mass, self._rejections = ChainMass.start(nowhere), Rejections.start(nowhere)

    @property
    def parts(self) -> list[object]:
        """This and its recorders: their attributes are what changes, beside rows that no count covers yet."""
        return [self, self.draws, *self.reach.parts]

    @property
    def over(self) -> bool:
        """Whether all windows have ended."""
        return self._window == len(self._windows)

    @property
    def approaching(self) -> bool:
        """Whether chains may still be on their way to the bulk: in early windows, after which they start anew."""
        early = self._window < max(1, len(self._windows) - _SETTLED_WINDOWS)
        return early and len(self._windows) > 1 and self._settings.adapt_step_size

    @property
    def num_steps(self) -> int:
        """How many steps make a draw at present."""
        return self.reach.num_steps

    @property
    def window(self) -> Window:
        """The present window."""
        return self._windows[self._window]

    @property
    def _metric_is_given(self) -> bool:
        """Whether the metric is given for the whole run."""
        return not any(window.renews_metric for window in self._windows)

    @property
    def transitions(self) -> Tensor:
        """How many each chain has made in the warm-up, `(chains,)`."""
        return self._before + (self.in_window + _ROUNDING).long()

    @property
    def missing(self) -> int:
        """How many steps are left in this window, as the median chain goes; it may go on for others."""
        return math.ceil(self.num_steps * (self.window.length - float(self.in_window.median()) - _ROUNDING))

    @property
    def due(self) -> bool:
        """Whether the window shall end.

        Windows end by the *median* count, so that no chain waits, and no lost one hurries the others. The last one lets
        every chain make its transitions.
        """
        if self.missing > 0 or self._window < len(self._windows) - 1:
            return self.missing <= 0
        made = int(self.transitions.min()) >= self._settings.warmup_steps
        return made and (not self._settings.save_warmup or int(self.draws.counts.min()) >= self.draws.num_draws)

    def record(self, done: Tensor, said: dict[str, Tensor], metric: Metric, adaptation: Adaptation) -> None:
        """Take in which chains ended a step in a block, `(ticks, chains)`, and what they say of it."""
        self.in_window = self.in_window + done.sum(0) / self.num_steps
        if self._settings.save_warmup:
            self.draws.record(done, said, {"position": metric.to_position})
        if self.window.renews_metric or self._metric_is_given:
            self.reach.record(done, said["position"], metric)
        if not self.window.renews_metric:
            return
        lp, diverging, whitened = said["lp"], said["diverging"], said["position"]
        # A chain that needs shorter steps than the others is on its way to the bulk, or lost.
        stuck = _stuck(adaptation)
        sound = done & torch.isfinite(lp) & ~diverging & ~stuck
        sound = sound & (lp > _implausible(lp[sound], whitened.shape[-1]))
        self._estimator = self._estimator.update(metric.to_position(whitened[sound]))
        if not self._algorithm.structured:  # the bound is that of densities over reals
            self._mass = self._mass.update(done, lp, whitened)
        diverging = diverging & ~said["non_finite"]  # which shorter steps would not mend
        self._rejections = self._rejections.update(done, said["step_size"], diverging)

    def end_block(self, adaptation: Adaptation) -> None:
        """After a block: look at which chains are stuck, and where draws tell how far the next shall go, let them."""
        if self._algorithm.sticks and self.window.renews_metric:
            self._rejections = self._rejections.look(_stuck(adaptation))
        self._go_further()

    def _go_further(self, *, window_ends: bool = False) -> None:
        self.reach.renew(window_ends=window_ends)
        if self.num_steps != self.draws.thinning:
            self.draws.thin(self.num_steps)

    def learn(self, position: Tensor, generator: Generator) -> tuple[Metric, Tensor]:
        """At the end of a window that renews the metric, the new one, and where chains go on, `(chains, dim)`.

        Args:
            position: where they are.
            generator: chooses where those that were left behind go on.
        """
        left_behind = self._mass.left_behind()
        if self._window >= max(2, len(self._windows) - _SETTLED_WINDOWS):
            self.target = self._rejections.raised(self.target, ~left_behind)
        self._go_further(window_ends=True)
        return self._estimator.metric(), self._bring_along(position, left_behind, generator)

    def _bring_along(self, position: Tensor, left_behind: Tensor, generator: Generator) -> Tensor:
        """Put each chain that is left behind where one that is not has come to."""
        number, there = int(left_behind.sum()), (~left_behind).nonzero().flatten()
        if not number:
            return position
        chosen = torch.randint(len(there), (number,), generator=generator, device=there.device)
        self.moved = self.moved + left_behind
        return position.index_put((left_behind,), position[there[chosen]])

    def next_window(self) -> None:
        """Go on to the next window."""
        self._before, self._window = self.transitions, self._window + 1
        self._begin_window()
        if not self.over and self.window.renews_metric:
            self.reach.begin_window()

    # -- saving ------------------------------------------------------------------------------------------------------

    _SAVED = ("_window", "_before", "in_window", "target", "moved")
    _TREES = ("_estimator", "_mass", "_rejections")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {
            **{name.lstrip("_"): getattr(self, name) for name in self._SAVED},
            **{name.lstrip("_"): pytree.tree_leaves(getattr(self, name)) for name in self._TREES},
            "draws": self.draws.state_dict(),
            "reach": self.reach.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        device = self._before.device
        for name in self._SAVED:
            value = saved[name.lstrip("_")]
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        for name in self._TREES:
            leaves = [leaf.to(device) for leaf in saved[name.lstrip("_")]]
            setattr(self, name, pytree.tree_unflatten(leaves, pytree.tree_structure(getattr(self, name))))
        self.draws.load_state_dict(saved["draws"])
        self.reach.load_state_dict(saved["reach"])


def _stuck(adaptation: Adaptation) -> Tensor:
    """Which chains take shorter steps than the others, `(chains,)`: these are halved, once or more."""
    return adaptation.step_sizes < 0.75 * adaptation.step_size


def _implausible(lp: Tensor, dim: int) -> Tensor:
    """The log density below which a draw is on its way to the bulk, or lost, and says nothing of its shape.

    In the bulk, log densities spread by about `√(dim / 2)` around their median, more where tails are heavy.
    """
    if not len(lp):
        return lp.new_full((), -torch.inf)
    median = lp.median()
    spread = (lp - median).abs().median().clamp(min=(dim / 2) ** 0.5)
    return median - _FAR * spread
