"""What normalisers by persistent walkers have in common: a population that follows the density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import InitializationError
from pyro_ebm._core.randomness import seeded_generator
from pyro_ebm.distributions._caller import moved_by_chains
from pyro_ebm.distributions.normalizers.draws import drawn
from pyro_ebm.distributions.normalizers.fingerprint import Fingerprint, fingerprint, kept, same
from pyro_ebm.distributions.normalizers.guards import refuse_compilation
from pyro_ebm.distributions.normalizers.held import check_held, held
from pyro_ebm.distributions.normalizers.population import Population, counts, restored, saved
from pyro_ebm.distributions.normalizers.refresh import evaluated, moved_on, reweighted
from pyro_ebm.distributions.normalizers.start import started
from pyro_ebm.distributions.normalizers.stillness import Stillness
from pyro_ebm.distributions.normalizers.surrogate import surrogate
from pyro_ebm.mcmc.moves import EnergyDensity, Move, Start, move_for


class Walkers(ABC):
    """A population of walkers, which is refreshed once for every change of the parameters, detected by value.

    That is when a gradient is asked for; never under `torch.no_grad`, and never inside MCMC, which needs `freeze()`
    where it samples parameters of the energy. A subclass says how the walkers are weighted, and what of log Z may be
    reported.

    Args:
        num_drivers: walkers that drive the gradient.
        num_trackers: walkers that track log Z; they are rounded up to fill their groups.
        num_steps: of each refresh; by default what is usual for the move.
        num_groups: of trackers.
        generator: of all random numbers; by default one of its own, seeded from torch's.

    Attributes:
        num_refreshes: how often they have followed a change.
        num_stages: of the annealing that they were started by.
        acceptance_rate: of their last moves.
    """

    def __init__(
        self,
        num_drivers: int,
        num_trackers: int,
        *,
        num_steps: int | None,
        num_groups: int,
        generator: Generator | None,
    ) -> None:
        if min(num_drivers, num_trackers) < 4 or (num_steps is not None and num_steps < 1):
            raise ValueError(
                f"{type(self).__name__}: got {num_drivers} walkers that drive the gradient, {num_trackers} that track "
                f"log Z, and num_steps={num_steps}, expected at least 4 of each, and 1 step."
            )
        self._num_drivers = num_drivers
        self._num_trackers, self._num_groups = counts(num_trackers, num_groups)
        self.num_steps = num_steps
        self._generator = generator
        self._population: Population | None = None
        self._fingerprint: Fingerprint = ()
        self.is_frozen = False
        self.num_refreshes = self.num_stages = 0
        self.acceptance_rate = float("nan")
        self._stillness = Stillness()

    # What a subclass says

    @abstractmethod
    def _settled(self, population: Population) -> Population:
        """The population, with the weights that it is to have."""

    @property
    @abstractmethod
    def _num_driving(self) -> int:
        """How many walkers, the first ones, drive the gradient."""

    @abstractmethod
    def _driving(self, population: Population) -> Tensor:
        """Their log weights, summing to one, `(drivers, *batch)`."""

    @abstractmethod
    def _check_report(self, population: Population, log_density: Tensor) -> None:
        """Raise where a log Z must not be reported by walkers that were not refreshed for it.

        Args:
            population: the walkers.
            log_density: the present density there, `(walkers, *batch)`.
        """

    # What an energy distribution asks

    def log_normalizer(self, distribution: EnergyDensity, /) -> Tensor:
        """See `Normalizer`.

        Raises:
            NormalizerError: if the walkers have nowhere to start: a density without a base.
            StepTooLargeError: if the parameters changed too much at once.
            WalkersDivergedError: if walkers or their energies are not finite.
            AnchorError: if they are frozen too far from the present parameters.
            StaleWalkersError: if a report is asked for far from where they were refreshed.
            StochasticPotentialError: under MCMC over parameters of the energy, if they are not frozen.
            CompiledWalkersError: in a program that is being traced or compiled.
        """
        if not self.is_frozen:
            refuse_compilation()
        population = self._ready(distribution)
        if self.is_frozen or moved_by_chains() or not torch.is_grad_enabled():
            return held(distribution, population, is_frozen=self.is_frozen, check_report=self._check_report)
        # The gradient is taken where the walkers are when they have their weights, and then they are moved: of what
        # learning does to an energy at its walkers, less is met again by them as work.
        move = move_for(distribution)
        at = evaluated(distribution, population, move, self._num_driving)
        if not same(fingerprint(distribution), self._fingerprint, at.log_density, population.log_density):
            steps = self.num_steps or move.usual_steps
            population = self._follow(distribution, at.log_density, move, steps, at.start)
        return surrogate(population.log_normalizer(), self._driving(population), at.drivers, at.drivers)

    def _ready(self, distribution: EnergyDensity) -> Population:
        """The walkers, started if this is the first call."""
        return self._start(distribution) if self._population is None else self._population

    def _start(self, distribution: EnergyDensity) -> Population:
        if self._generator is None:
            self._generator = seeded_generator(like_of(distribution.energy).device)
        counted = self._num_drivers, self._num_trackers, self._num_groups
        self._population, self.num_stages = started(distribution, *counted, self._generator)
        self._fingerprint = kept(fingerprint(distribution))
        return self._population

    def _follow(
        self, distribution: EnergyDensity, log_density: Tensor, move: Move, num_steps: int, start: Start | None
    ) -> Population:
        """Take the walkers to the present parameters, for which the density is known where they are.

        Returns:
            The population where it was, with its new weights.
        """
        old, generator = self._required()
        when = f"{type(self).__name__}, after {self.num_refreshes} refreshes"
        population = self._settled(reweighted(old, log_density, when))
        self._population, moved = moved_on(
            distribution, population, move, generator, num_steps=num_steps, start=start, when=when
        )
        self._fingerprint = kept(fingerprint(distribution))
        self.num_refreshes += 1
        self.acceptance_rate = float(moved.acceptance_rate.mean())
        self._stillness.note(type(self).__name__, self.acceptance_rate, move.least_acceptance)
        return population

    # What a user asks

    @property
    def is_started(self) -> bool:
        """Whether there are walkers: since the first call."""
        return self._population is not None

    @property
    def num_walkers(self) -> int:
        """How many drive the gradient."""
        return self._num_drivers

    def refresh(self, distribution: EnergyDensity, num_steps: int) -> None:
        """Follow the density to its present parameters, and move the walkers there for long, with equal weights."""
        with torch.no_grad():
            population, move = self._ready(distribution), move_for(distribution)
            self._follow(distribution, distribution.unnormalized_log_prob(population.value), move, 1, None)
            population, generator = self._required()
            self._population = population.resampled(generator, below=1.0)
            self._follow(distribution, self._population.log_density, move, num_steps, None)

    def restart(self, distribution: EnergyDensity, *, num_trackers: int | None = None) -> None:
        """Start anew, by annealing from the base to the density as it is, which need not be near to what it was.

        What trackers tell of log Z after a long training has the noise of all of its way; this has that of one
        annealing, and takes no longer than some hundreds of steps.

        Args:
            distribution: the density.
            num_trackers: how many are to track log Z from now on; by default as many as did.

        Raises:
            InitializationError: if annealing does not reach the density; the walkers are then what they were.
        """
        before = self._num_trackers, self._num_groups
        if num_trackers is not None:
            self._num_trackers, self._num_groups = counts(num_trackers, self._num_groups)
        try:
            self._start(distribution)
        except InitializationError:
            self._num_trackers, self._num_groups = before
            raise

    def freeze(self) -> None:
        """Hold the walkers where they are: log Z becomes a fixed function of the parameters, fit for MCMC over them.

        It is right near the parameters where they are frozen; `AnchorError` says where it is not.
        """
        self._required()
        self.is_frozen = True

    def unfreeze(self) -> None:
        """Let the walkers follow the parameters again."""
        self.is_frozen = False

    def check(self, distribution: EnergyDensity) -> None:
        """Raise where the parameters of a distribution are too far from those at which the walkers were frozen.

        Call it with the distribution at some draws of a posterior over its parameters: inside of MCMC nothing is
        checked, for a chain may be far away while it warms up.

        Raises:
            AnchorError: there.
        """
        check_held(distribution, self._required()[0])

    def draw(self, distribution: EnergyDensity, sample_shape: Size) -> Tensor:
        """Values of walkers, by their weights, and moved on: draws that are as good as the walkers.

        Returns:
            `(*sample, *batch, *event)`.
        """
        self._ready(distribution)
        return drawn(distribution, *self._required(), sample_shape)

    def _required(self) -> tuple[Population, Generator]:
        if self._population is None or self._generator is None:
            raise RuntimeError(
                f"{type(self).__name__}: got no walkers yet, expected them to be started. Call log_prob of their "
                "distribution first."
            )
        return self._population, self._generator

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on: walkers, weights, log Z and the state of the generator."""
        return {
            **saved(self._population, self._generator),
            "fingerprint": tuple(self._fingerprint),
            "is_frozen": self.is_frozen,
            "num_refreshes": self.num_refreshes,
            "num_stages": self.num_stages,
            "acceptance_rate": self.acceptance_rate,
            "num_still": self._stillness.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._population, self._generator = restored(state)
        self._fingerprint = tuple(state["fingerprint"])
        self.is_frozen = state["is_frozen"]
        self.num_refreshes, self.num_stages = state["num_refreshes"], state["num_stages"]
        self.acceptance_rate, self._stillness = state["acceptance_rate"], Stillness(state["num_still"])

    def __getstate__(self) -> dict[str, Any]:
        """Generators are not pickled; their states are."""
        kept = {"_num_drivers", "_num_trackers", "_num_groups", "num_steps"}
        return {**{name: vars(self)[name] for name in kept}, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what was pickled."""
        self.load_state_dict(state.pop("state"))
        vars(self).update(state)
