"""A run of many chains as one batched program: warm-up, then sampling, a block of ticks at a time.

Between blocks the whole run is in tensors that can be saved: a run that is stopped, saved, loaded and continued makes
the same draws as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils import _pytree as pytree

from pyro_ebm._core.program import CompiledFunction, EagerProgram, Program, build_program
from pyro_ebm._core.randomness import normal
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.metric import METRICS, DiagonalMetric, Metric, whiten
from pyro_ebm.mcmc.minibatch import at_minibatch, draw_minibatches
from pyro_ebm.mcmc.protocols import Stage, State
from pyro_ebm.mcmc.recorder import Recorder
from pyro_ebm.mcmc.settings import RunSettings
from pyro_ebm.mcmc.step_size import reasonable_step_size
from pyro_ebm.mcmc.warmup import Warmup

# Ticks in a block, between two looks at the counters: enough to make the look cheap, within a bound on its memory.
# Where a transition takes many, a block of draws is a few transitions, and no more than all before it.
_MOST_TICKS, _MOST_TRANSITIONS, _MOST_NUMBERS = 256, 4, 2**22
# Ticks at a time where a tick is slow, for want of a program that repeats itself, and seconds that a program may take
# at a time while sampling: what an interruption may lose, and has to wait for.
_SLOW_TICKS, _WHOLE, _PATIENCE = 8, ("C", "CUDA graph"), 0.5
# A new metric whose variances differ from the old one's by less than this factor, in logarithms, changes no scale.
_SAME_SCALE = 0.7
# The share of what a window still needs that is done before looking again.
_WINDOW_SHARE = 0.5


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
        warmup: what is learned before sampling.
        draws: the recorder of draws.
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
        chains, device = len(position), position.device
        self.algorithm, self.settings, self.generator = algorithm, settings, generator
        self.metric: Metric = settings.metric or DiagonalMetric(torch.ones_like(position[0]))
        self.warmup = Warmup(algorithm, position, settings)
        step_size = torch.tensor(settings.step_size, dtype=position.dtype, device=device)
        self._adaptation = algorithm.adaptation(step_size, chains)
        folder = settings.folder / "draws" if settings.folder is not None else None
        thinning = self.warmup.num_steps * settings.thinning
        self.draws = Recorder(chains, settings.num_samples, device, thinning, folder)
        self._diverged = torch.zeros(chains, dtype=torch.long, device=device)
        # Raised since the last draw; where every transition makes one, they would only cost time.
        self._alarms = dict.fromkeys(_ALARMS, self._diverged > 0) if thinning > 1 else {}
        self._acceptance = torch.zeros_like(step_size)
        self._ticks = self._ended = 0  # in this window: of all chains together, and transitions that ended in them
        self._pending: Any = None  # the randomness of the rest of the block
        self._pace = _PATIENCE / _MOST_TICKS  # seconds that a tick took
        self.concerns: list[str] = []
        self._log_density = self._traceable = log_density
        if settings.compile != "no" and not algorithm.structured:
            examples = (position, *(each.first(position.device) for each in settings.subsamples))
            self._log_density = compiled = CompiledFunction(log_density, *examples, patient=settings.compile == "yes")
            self._traceable, self.concerns = compiled.plain, compiled.reasons
        self._program: Program | None = None
        self._state: State
        self._enter_window(position)

    # -- what a caller may ask between blocks ------------------------------------------------------------------------

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return self._diverged.shape[0]

    @property
    def warming_up(self) -> bool:
        """Whether the run is still in its warm-up."""
        return not self.warmup.over

    @property
    def finished(self) -> bool:
        """Whether every chain has all its draws."""
        return not self.warming_up and int(self.draws.counts.min()) >= self.settings.num_samples

    @property
    def transitions(self) -> int:
        """Mean number of transitions so far, out of `warmup_steps + num_samples * thinning`."""
        most = self.settings.num_samples * self.draws.thinning
        sampled = self.draws.transitions.clamp(max=most).double().mean() / self.warmup.num_steps
        return int(self.warmup.transitions.clamp(max=self.settings.warmup_steps).double().mean() + sampled)

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
        """Mean acceptance probability of the last transitions, as many as ended in the last part of a block."""
        return float(self._acceptance)

    @property
    def num_divergences(self) -> Tensor:
        """Draws since the warm-up in whose transitions, those between draws included, a step diverged, `(chains,)`."""
        return self._diverged

    @property
    def learned(self) -> dict[str, float]:
        """What the warm-up has made of how far a draw goes: the argument that would have said so, by name.

        ChEES-HMC has no such argument: its trajectory length is the greatest, that of others the mean.
        """
        if self.algorithm.learns == "num_steps":
            return {"num_steps": self.warmup.num_steps}
        if self.algorithm.learns == "trajectory_length":
            return {"trajectory_length": float(self._parameters().trajectory_length.max())}
        return {}

    @property
    def rung(self) -> str:
        """What runs the ticks: `"C"`, `"CUDA graph"`, `"Inductor"`, `"traced"` or `"eager"`."""
        return self._program.rung if self._program is not None else "eager"

    # -- running -----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Do a block of ticks, or a part of one where ticks are slow.

        An exception, Ctrl-C included, leaves the run as it was before.
        """
        before = [(part, vars(part).copy()) for part in (self, self.draws, *self.warmup.parts)]
        random_state = self.generator.get_state()
        try:
            if self._pending is None:
                position = self._state.position
                ahead = position.expand(self._block_length(), *position.shape)
                self._pending = self._draw_randomness(ahead)
            self._part_of_block()
            if self._pending is None and self.warming_up:
                self.warmup.end_block(self._adaptation)
                self._end_window_if_due()
        except BaseException:
            for part, attributes in before:
                vars(part).update(attributes)
            self.generator.set_state(random_state)
            raise

    def _draw_randomness(self, position: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """The random numbers of ticks, and their minibatches, for positions `(*ticks, chains, dim)`."""
        randomness = self.algorithm.draw_randomness(position, self.generator)
        return randomness, draw_minibatches(self.settings.subsamples, position.shape[:-2], self.generator)

    def _block_length(self) -> int:
        """Ticks until the counters should be looked at again: a function of the run's state, so that runs repeat."""
        usual = self.algorithm.usual_ticks
        ticks_to_transition = self._ticks * self.num_chains / max(self._ended, 1) if self._ticks else usual
        if self.warming_up:
            missing, most = max(self.warmup.missing, 1) * _WINDOW_SHARE, _MOST_TICKS
        else:
            missing = self.settings.num_samples * self.draws.thinning - int(self.draws.transitions.min())
            most = max(_MOST_TICKS, min(int(_MOST_TRANSITIONS * ticks_to_transition), self._ticks))
        numbers = self._state.position.numel() + sum(each.subsample_size for each in self.settings.subsamples)
        most = min(most, max(1, _MOST_NUMBERS // numbers))
        return max(1, min(int(missing * ticks_to_transition) + 1, most))

    def _part_length(self, ahead: int) -> int:
        """Ticks until an interruption is heard, of so many that are left of the block: they make no other draws."""
        if self._program is None or self._program.rung not in _WHOLE:
            return min(ahead, _SLOW_TICKS)
        if self.warming_up:  # what a window learns is counted by parts
            return ahead
        return min(ahead, max(_SLOW_TICKS, int(_PATIENCE / self._pace)))

    def _tick(self, carry: Any, randomness: Any, constants: Any) -> tuple[Any, Any]:
        """One tick, as a function of tensors: what a program repeats."""
        (state, adaptation, unkept, alarms), (metric, target, stage, adapting, thinning) = carry, constants
        randomness, minibatch = randomness
        density = whiten(metric, at_minibatch(self._traceable, minibatch))
        parameters = self.algorithm.parameters(adaptation, stage)
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
        settings = (self.warming_up and self.settings.adapt_step_size, thinning)
        settled = (torch.full((), each, device=self._acceptance.device) for each in settings)
        constants = (self.metric, self.warmup.target, self._stage(), *settled)
        carry = (self._state, self._adaptation, self.draws.transitions % thinning, self._alarms)
        if self._program is None:
            self._program = self._make_program(carry, pytree.tree_map(lambda x: x[0], self._pending), constants)
        ahead = len(pytree.tree_leaves(self._pending)[0])
        ticks = self._part_length(ahead)
        randomness = pytree.tree_map(lambda x: x[:ticks], self._pending)
        started = time.perf_counter()
        (self._state, self._adaptation, _, self._alarms), (done, said) = self._program(carry, randomness, constants)
        self._pending = pytree.tree_map(lambda x: x[ticks:], self._pending) if ticks < ahead else None
        self._ticks, self._ended = self._ticks + ticks, self._ended + int(done.sum())
        self._pace = (time.perf_counter() - started) / ticks
        self._record(done, said)

    def _stage(self) -> Stage:
        facts = (self.warming_up, self.warmup.approaching)
        warming_up, approaching = (torch.full((), each, device=self._acceptance.device) for each in facts)
        return Stage(warming_up, approaching, self.warmup.reach.value)

    def _parameters(self) -> Any:
        return self.algorithm.parameters(self._adaptation, self._stage())

    def _make_program(self, carry: Any, randomness: Any, constants: Any) -> Program:
        if self.settings.compile == "no":
            return EagerProgram(self._tick)
        patient = self.settings.compile == "yes"
        program, self.concerns = build_program(self._tick, carry, randomness, constants, patient=patient)
        return program

    def _record(self, done: Tensor, said: dict[str, Tensor]) -> None:
        """Take in which chains ended a transition in a block, `(ticks, chains)`, and what they say where it is kept."""
        if self.warming_up:
            self._acceptance = _mean_where(done, said["acceptance_rate"], self._acceptance)
            self.warmup.record(done, said, self.metric, self._adaptation)
            return
        kept = self.draws.record(done, said, {"position": self.metric.to_position})
        (ticks,) = kept.any(-1).nonzero(as_tuple=True)  # few, where chains are thinned
        kept = kept[ticks]
        self._diverged = self._diverged + (kept & said["diverging"][ticks]).sum(0)
        self._acceptance = _mean_where(kept, said["acceptance_rate"][ticks], self._acceptance)

    def _end_window_if_due(self) -> None:
        if not self.warmup.due:
            return
        position, same_scale = self.position, True
        changes = self.settings.adapt_step_size or self.warmup.window.renews_metric
        if self.settings.adapt_step_size:
            self._adaptation = self._adaptation.settled()
        if self.warmup.window.renews_metric:
            old, (self.metric, position) = self.metric, self.warmup.learn(position, self.generator)
            ratio = (self.metric.variances / old.variances).log().abs()
            same_scale = bool(ratio.max() < _SAME_SCALE)
            if type(self.metric) is not type(old):
                self._program = None  # another kind of metric makes another program
        self.warmup.next_window()
        if self.warmup.over and self.draws.thinning != self.warmup.num_steps * self.settings.thinning:
            self.draws.thin(self.warmup.num_steps * self.settings.thinning)
        if changes:
            self._enter_window(position, same_scale)
        else:  # chains go on as they are
            self._ticks = self._ended = 0

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
        self._ticks = self._ended = 0
        self._state = self.algorithm.init(
            density,
            whitened,
            self._parameters(),
            self.algorithm.draw_randomness(whitened, self.generator),
        )

    # -- saving ------------------------------------------------------------------------------------------------------

    _SAVED = ("_diverged", "_acceptance", "_ticks", "_ended")
    _TREES = ("metric", "_adaptation", "_state", "_alarms")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next block depends on, and the draws: tensors and numbers only."""
        return {
            **{name.lstrip("_"): getattr(self, name) for name in self._SAVED},
            **{name.lstrip("_"): pytree.tree_leaves(getattr(self, name)) for name in self._TREES},
            "pending": pytree.tree_leaves(self._pending) if self._pending is not None else [],
            "metric_kind": type(self.metric).__name__,
            "draws": self.draws.state_dict(),
            "warmup": self.warmup.state_dict(),
            "random_state": self.generator.get_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved; the run goes on from there."""
        device = self._diverged.device
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
        self.warmup.load_state_dict(saved["warmup"])
        self.generator.set_state(saved["random_state"].cpu())


def _where(condition: Tensor, new: Any, old: Any) -> Any:
    """One of two trees of tensors."""
    return pytree.tree_map(lambda x, y: torch.where(condition, x, y), new, old)


def _mean_where(mask: Tensor, values: Tensor, otherwise: Tensor) -> Tensor:
    """The mean of the values in the mask, `()`; something else if there is none."""
    count = mask.sum()
    return torch.where(count > 0, torch.where(mask, values, 0).sum() / count, otherwise)


# What only the adaptation needs to know.
_NOT_RECORDED = {"done", "criterion", "criterion_gradient"}
# What a draw tells of all the transitions since the one before it.
_ALARMS = ("diverging", "non_finite")
