"""A run of many chains as one batched program: warm-up, then sampling, a block of ticks at a time.

Between blocks the whole run is in tensors that can be saved: a run that is stopped, saved, loaded and continued makes
the same draws as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.utils import _pytree as pytree

from pyro_ebm._core.program import CompiledFunction, EagerProgram, Program, build_program
from pyro_ebm._core.randomness import normal
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.chain_mass import ChainMass
from pyro_ebm.mcmc.covariance import MetricEstimator, PooledVariance
from pyro_ebm.mcmc.divergences import Divergences
from pyro_ebm.mcmc.metric import METRICS, DiagonalMetric, Metric, whiten
from pyro_ebm.mcmc.minibatch import Subsample, at_minibatch, draw_minibatches
from pyro_ebm.mcmc.protocols import State
from pyro_ebm.mcmc.recorder import Recorder
from pyro_ebm.mcmc.step_size import reasonable_step_size
from pyro_ebm.mcmc.windows import Window, warmup_windows

# Ticks in a block, between two looks at the counters: enough to make the look cheap, within a bound on its memory.
_MOST_TICKS, _MOST_NUMBERS = 256, 2**22
# Ticks at a time where a tick is slow, for want of a program that repeats itself: what an interruption may lose.
_SLOW_TICKS, _WHOLE = 8, ("C", "CUDA graph")
# A new metric whose variances differ from the old one's by less than this factor, in logarithms, changes no scale.
_SAME_SCALE = 0.7
# A log density so many median deviations below the median is not one of the bulk.
_FAR = 10.0
Compile = Literal["no", "fast", "yes"]
# The share of what a window still needs that is done before looking again.
_WINDOW_SHARE = 0.5


@dataclass(frozen=True)
class RunSettings:
    """How long a run is, and what adapts.

    Attributes:
        num_samples: draws of each chain.
        warmup_steps: transitions of each chain before them, at the least.
        step_size: the first leapfrog step size, in units of the metric.
        adapt_step_size: whether it adapts.
        adapt_metric: whether the metric adapts.
        metric: the first metric; by default the identity.
        estimator: what the metric is learned by, without draws; by default the variance of each dim.
        save_warmup: whether to keep the draws of the warm-up.
        thinning: of so many transitions after the warm-up, one is kept.
        compile: whether ticks are compiled: `"no"`; `"fast"`, if a fast compiler can; `"yes"`, however long it takes.
        subsamples: what the log density takes minibatches of, anew in every tick.
        folder: where draws are kept on disk; by default they are kept in memory.
    """

    num_samples: int
    warmup_steps: int
    step_size: float = 1.0
    adapt_step_size: bool = True
    adapt_metric: bool = True
    metric: Metric | None = None
    estimator: MetricEstimator | None = None
    save_warmup: bool = False
    thinning: int = 1
    compile: Compile = "no"
    subsamples: tuple[Subsample, ...] = ()
    folder: Path | None = None


class Run:
    """Many chains as one program.

    Args:
        algorithm: the sampler.
        log_density: the log density with its gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`; if it is
            estimated from minibatches, it takes their indices after the position.
        position: where the chains start, `(chains, dim)`.
        generator: where the randomness comes from.
        settings: how long, and what adapts.

    Attributes:
        metric: the present metric.
        draws: the recorder of draws; `warmup_draws` that of the warm-up.
        concerns: why the program does not run on a higher rung, where it was to be compiled.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        log_density: Callable[..., tuple[Tensor, Tensor]],
        position: Tensor,
        generator: Generator,
        settings: RunSettings,
    ) -> None:
        chains = len(position)
        self.algorithm, self.settings, self.generator = algorithm, settings, generator
        windows = warmup_windows(settings.warmup_steps, chains, adapt_metric=settings.adapt_metric)
        self._windows = [Window(algorithm.num_steps * length, renews) for length, renews in windows]
        self._window = 0
        self.metric: Metric = settings.metric or DiagonalMetric(torch.ones_like(position[0]))
        self._no_draws: MetricEstimator = settings.estimator or PooledVariance.start(torch.zeros_like(position[0]))
        self._estimator = self._no_draws
        step_size = torch.tensor(settings.step_size, dtype=position.dtype, device=position.device)
        self._adaptation = algorithm.adaptation(step_size, chains)
        draws, warmup = (settings.folder and settings.folder / name for name in ("draws", "warmup"))
        self.draws = Recorder(
            chains, settings.num_samples, position.device, algorithm.num_steps * settings.thinning, draws
        )
        saved = settings.warmup_steps if settings.save_warmup else 0
        self.warmup_draws = Recorder(chains, saved, position.device, algorithm.num_steps, warmup)
        self._in_window = torch.zeros(chains, dtype=torch.long, device=position.device)
        self._in_warmup = torch.zeros_like(self._in_window)
        self._diverged = torch.zeros_like(self._in_window)
        quiet = torch.zeros(chains, dtype=torch.bool, device=position.device)
        # Raised since the last draw; where every transition makes one, they would only cost time.
        self._alarms = dict.fromkeys(_ALARMS, quiet) if self.draws.thinning > 1 else {}
        self._divergences = Divergences.start(position)
        self._moved = torch.zeros_like(self._in_window)
        self._target = torch.tensor(algorithm.target_accept_prob, dtype=position.dtype, device=position.device)
        self._acceptance = torch.zeros_like(self._target)
        self._ticks = 0  # in this window
        self._pending: Any = None  # the randomness of the rest of the block
        self.concerns: list[str] = []
        self._log_density = self._traceable = log_density
        if settings.compile != "no" and not algorithm.structured:
            examples = (position, *(each.first(position.device) for each in settings.subsamples))
            self._log_density = compiled = CompiledFunction(log_density, *examples, patient=settings.compile == "yes")
            self._traceable, self.concerns = compiled.plain, compiled.reasons
        self._program: Program | None = None
        self._state: State
        self._mass = ChainMass.start(position)
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
        """Mean number of transitions so far, out of `warmup_steps + num_samples * thinning`."""
        num_steps = self.algorithm.num_steps
        warmup = self._in_warmup.clamp(max=num_steps * self.settings.warmup_steps).double().mean()
        most = self.settings.num_samples * self.draws.thinning
        return int((warmup + self.draws.transitions.clamp(max=most).double().mean()) / num_steps)

    @property
    def position(self) -> Tensor:
        """Where the chains are, `(chains, dim)`."""
        return self.metric.to_position(self._state.position)

    @property
    def step_size(self) -> Tensor:
        """The leapfrog step size of trajectories that start now, `()`."""
        return self._adaptation.step_size

    @property
    def mean_acceptance(self) -> float:
        """Mean acceptance probability of the last transitions."""
        return float(self._acceptance)

    @property
    def num_divergences(self) -> Tensor:
        """Draws since the warm-up in whose transitions, those between draws included, a step diverged, `(chains,)`."""
        return self._diverged

    @property
    def num_moved(self) -> Tensor:
        """How often each chain was left behind in the warm-up, and moved to where another was, `(chains,)`."""
        return self._moved

    @property
    def target_acceptance(self) -> float:
        """The acceptance probability that the step size has adapted to."""
        return float(self._target)

    @property
    def rung(self) -> str:
        """What runs the ticks: `"C"`, `"Inductor"`, `"traced"` or `"eager"`."""
        return self._program.rung if self._program is not None else "eager"

    # -- running -----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Do a block of ticks, or a part of one where ticks are slow.

        An exception, Ctrl-C included, leaves the run as it was before.
        """
        before = vars(self).copy()
        draws, warmup_draws = self.draws.transitions, self.warmup_draws.transitions
        random_state = self.generator.get_state()
        try:
            if self._pending is None:
                position = self._state.position
                ahead = position.expand(self._block_length(), *position.shape)
                self._pending = self._draw_randomness(ahead)
            self._part_of_block()
            if self._pending is None and self.warming_up:
                self._end_window_if_due()
        except BaseException:
            vars(self).update(before)
            self.draws.transitions, self.warmup_draws.transitions = draws, warmup_draws
            self.generator.set_state(random_state)
            raise

    def _draw_randomness(self, position: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """The random numbers of ticks, and their minibatches, for positions `(*ticks, chains, dim)`."""
        randomness = self.algorithm.draw_randomness(position, self.generator)
        return randomness, draw_minibatches(self.settings.subsamples, position.shape[:-2], self.generator)

    def _block_length(self) -> int:
        """Ticks until the counters should be looked at again: a function of the run's state, so that runs repeat."""
        if self.warming_up:
            made = self._in_window
            missing = max(self._windows[self._window].length - int(made.median()), 1) * _WINDOW_SHARE
        else:
            made = self.draws.transitions
            missing = self.settings.num_samples * self.draws.thinning - int(made.min())
        ticks_to_transition = (
            self._ticks * len(made) / max(int(made.sum()), 1) if self._ticks else self.algorithm.usual_ticks
        )
        numbers = self._state.position.numel() + sum(each.subsample_size for each in self.settings.subsamples)
        most = min(_MOST_TICKS, max(1, _MOST_NUMBERS // numbers))
        return max(1, min(int(missing * ticks_to_transition) + 1, most))

    def _tick(self, carry: Any, randomness: Any, constants: Any) -> tuple[Any, Any]:
        """One tick, as a function of tensors: what a program repeats."""
        (state, adaptation, unkept, alarms), (metric, target, warming_up, adapting, thinning) = carry, constants
        randomness, minibatch = randomness
        density = whiten(metric, at_minibatch(self._traceable, minibatch))
        parameters = self.algorithm.parameters(adaptation, warming_up)
        new_state, info = self.algorithm.step(density, state, randomness, parameters)
        ended = info.done.any()  # until then there is nothing to learn or to say
        # A chain that is lost, or diverges wherever it goes, rejects in every tick: it would ruin the pool.
        sound = info.done & torch.isfinite(info.lp)
        adapted = adaptation.adapt(info, sound, target)
        adaptation = _where(adapting, _where(ended, adapted, adaptation), adaptation)
        # What no chain keeps need not be computed.
        unkept = unkept + info.done
        kept = info.done & (unkept == thinning)
        alarms = {name: alarm | (info.done & getattr(info, name)) for name, alarm in alarms.items()}
        said = {name: value for name, value in info._asdict().items() if name not in _NOT_RECORDED}
        said |= {"position": new_state.position, **alarms}
        nothing = pytree.tree_map(torch.zeros_like, said)
        said = _where(ended, _where(kept.any(), said, nothing), nothing)
        alarms = {name: alarm & ~kept for name, alarm in alarms.items()}
        return (new_state, adaptation, unkept.masked_fill(kept, 0), alarms), (info.done, said)

    def _part_of_block(self) -> None:
        thinning = 1 if self.warming_up else self.draws.thinning
        settings = (self.warming_up, self.warming_up and self.settings.adapt_step_size, thinning)
        constants = (self.metric, self._target, *(torch.tensor(each, device=self._target.device) for each in settings))
        carry = (self._state, self._adaptation, self.draws.transitions % thinning, self._alarms)
        if self._program is None:
            self._program = self._make_program(carry, pytree.tree_map(lambda x: x[0], self._pending), constants)
        ahead = len(pytree.tree_leaves(self._pending)[0])
        ticks = ahead if self._program.rung in _WHOLE else min(ahead, _SLOW_TICKS)
        randomness = pytree.tree_map(lambda x: x[:ticks], self._pending)
        (self._state, self._adaptation, _, self._alarms), (done, said) = self._program(carry, randomness, constants)
        self._pending = pytree.tree_map(lambda x: x[ticks:], self._pending) if ticks < ahead else None
        self._ticks += ticks
        self._record(done, said)

    def _make_program(self, carry: Any, randomness: Any, constants: Any) -> Program:
        if self.settings.compile == "no":
            return EagerProgram(self._tick)
        patient = self.settings.compile == "yes"
        program, self.concerns = build_program(self._tick, carry, randomness, constants, patient=patient)
        return program

    def _record(self, done: Tensor, said: dict[str, Tensor]) -> None:
        """Take in which chains ended a transition in a block, `(ticks, chains)`, and what they say where it is kept."""
        unwhiten = {"position": self.metric.to_position}
        if not self.warming_up:
            kept = self.draws.record(done, said, unwhiten)
            (ticks,) = kept.any(-1).nonzero(as_tuple=True)  # few, where chains are thinned
            kept = kept[ticks]
            self._diverged = self._diverged + (kept & said["diverging"][ticks]).sum(0)
            self._acceptance = _mean_where(kept, said["acceptance_rate"][ticks], self._acceptance)
            return
        ended = done.sum(0)
        self._acceptance = _mean_where(done, said["acceptance_rate"], self._acceptance)
        self._in_window = self._in_window + ended
        self._in_warmup = self._in_warmup + ended
        if self.settings.save_warmup:
            self.warmup_draws.record(done, said, unwhiten)
        if self._windows[self._window].renews_metric:
            lp, diverging, whitened = said["lp"], said["diverging"], said["position"]
            # A chain that needs shorter steps than the others is on its way to the bulk, or lost.
            usual = self._adaptation.step_sizes == self._adaptation.step_size
            sound = done & torch.isfinite(lp) & ~diverging & usual
            sound = sound & (lp > _implausible(lp[sound], whitened.shape[-1]))
            self._estimator = self._estimator.update(self.metric.to_position(whitened[sound]))
            if not self.algorithm.structured:  # the bound is that of densities over reals
                self._mass = self._mass.update(done, lp, whitened)
            diverging = diverging & ~said["non_finite"]  # which shorter steps would not mend
            self._divergences = self._divergences.update(done, said["step_size"], diverging)

    def _end_window_if_due(self) -> None:
        """Windows end by the *median* count, so that no chain waits, and no lost one hurries the others.

        The last one lets every chain make its transitions.
        """
        window, last = self._windows[self._window], self._window == len(self._windows) - 1
        due = int(self._in_window.median()) >= window.length
        if last:
            due = due and int(self._in_warmup.min()) >= self.algorithm.num_steps * self.settings.warmup_steps
        if not due:
            return
        position = self.position
        if self.settings.adapt_step_size:
            self._adaptation = self._adaptation.settled()
        same_scale = True
        if window.renews_metric:
            left_behind = self._mass.left_behind()
            position = self._bring_along(position, left_behind)
            if self._window >= max(2, len(self._windows) - 3):  # the last two windows with a metric, to judge by
                self._target = self._divergences.raised(self._target, ~left_behind)
            old, self.metric = self.metric, self._estimator.metric()
            ratio = (self.metric.variances / old.variances).log().abs()
            same_scale = bool(ratio.max() < _SAME_SCALE)
            if type(self.metric) is not type(old):
                self._program = None  # another kind of metric makes another program
        self._window += 1
        if self.settings.adapt_step_size or window.renews_metric:
            self._enter_window(position, same_scale)
        else:  # nothing has changed, and chains go on as they are
            self._in_window, self._ticks = torch.zeros_like(self._in_window), 0

    def _bring_along(self, position: Tensor, left_behind: Tensor) -> Tensor:
        """Put each chain that is left behind where one that is not has come to."""
        number, there = int(left_behind.sum()), (~left_behind).nonzero().flatten()
        if not number:
            return position
        chosen = torch.randint(len(there), (number,), generator=self.generator, device=there.device)
        self._moved = self._moved + left_behind
        return position.index_put((left_behind,), position[there[chosen]])

    def _enter_window(self, position: Tensor, same_scale: bool = False) -> None:
        """Start fresh trajectories at `position`, with the present metric; while adapting, with a new step size."""
        whitened = self.metric.to_whitened(position)
        minibatch = draw_minibatches(self.settings.subsamples, (), self.generator)
        density = whiten(self.metric, at_minibatch(self._log_density, minibatch))
        if self.warming_up and self.settings.adapt_step_size:
            step_size = self.step_size
            if not self.algorithm.structured:
                momentum = normal(whitened.shape, whitened, self.generator)
                step_size = reasonable_step_size(density, whitened, momentum, step_size)
            self._adaptation = self._adaptation.restarted(step_size, same_scale=same_scale)
        if self.warming_up and self._windows[self._window].renews_metric:
            self._estimator = self._no_draws
        self._mass = ChainMass.start(position)
        self._divergences = Divergences.start(position)
        self._in_window, self._ticks = torch.zeros_like(self._in_window), 0
        warming_up = torch.tensor(self.warming_up, device=position.device)
        self._state = self.algorithm.init(
            density,
            whitened,
            self.algorithm.parameters(self._adaptation, warming_up),
            self.algorithm.draw_randomness(whitened, self.generator),
        )

    # -- saving ------------------------------------------------------------------------------------------------------

    _SAVED = ("_window", "_in_window", "_in_warmup", "_diverged", "_moved", "_target", "_acceptance", "_ticks")
    _TREES = ("metric", "_adaptation", "_estimator", "_mass", "_divergences", "_state", "_alarms")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next block depends on, and the draws: tensors and numbers only."""
        return {
            **{name.lstrip("_"): getattr(self, name) for name in self._SAVED},
            **{name.lstrip("_"): pytree.tree_leaves(getattr(self, name)) for name in self._TREES},
            "pending": pytree.tree_leaves(self._pending) if self._pending is not None else [],
            "metric_kind": type(self.metric).__name__,
            "draws": self.draws.state_dict(),
            "warmup_draws": self.warmup_draws.state_dict(),
            "random_state": self.generator.get_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved; the run goes on from there."""
        device = self._in_window.device
        for name in self._SAVED:
            value = saved[name.lstrip("_")]
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        kind = METRICS[saved["metric_kind"]]
        if not isinstance(self.metric, kind):
            self.metric, self._program = kind(*saved["metric"]), None
        for name in self._TREES:
            leaves = [leaf.to(device) for leaf in saved[name.lstrip("_")]]
            setattr(self, name, pytree.tree_unflatten(leaves, pytree.tree_structure(getattr(self, name))))
        pending = [leaf.to(device) for leaf in saved["pending"]]
        like = self._draw_randomness(self._state.position)
        self._pending = pytree.tree_unflatten(pending, pytree.tree_structure(like)) if pending else None
        self.draws.load_state_dict(saved["draws"])
        self.warmup_draws.load_state_dict(saved["warmup_draws"])
        self.generator.set_state(saved["random_state"].cpu())


def _where(condition: Tensor, new: Any, old: Any) -> Any:
    """One of two trees of tensors."""
    return pytree.tree_map(lambda x, y: torch.where(condition, x, y), new, old)


def _mean_where(mask: Tensor, values: Tensor, otherwise: Tensor) -> Tensor:
    """The mean of the values in the mask, `()`; something else if there is none."""
    count = mask.sum()
    return torch.where(count > 0, torch.where(mask, values, 0).sum() / count, otherwise)


def _implausible(lp: Tensor, dim: int) -> Tensor:
    """The log density below which a draw is on its way to the bulk, or lost, and says nothing of its shape.

    In the bulk, log densities spread by about `√(dim / 2)` around their median, more where tails are heavy.
    """
    if not len(lp):
        return lp.new_tensor(-torch.inf)
    median = lp.median()
    spread = (lp - median).abs().median().clamp(min=(dim / 2) ** 0.5)
    return median - _FAR * spread


# What only the adaptation needs to know.
_NOT_RECORDED = {"done", "criterion", "criterion_gradient"}
# What a draw tells of all the transitions since the one before it.
_ALARMS = ("diverging", "non_finite")
