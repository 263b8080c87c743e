"""`PersistentWalkers`: weighted persistent chains that give the gradient of log Z, and track its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.randomness import seeded_generator
from pyro_ebm.distributions._caller import moved_by_chains, scored_site
from pyro_ebm.distributions.normalizers.fingerprint import Fingerprint, fingerprint, kept, same
from pyro_ebm.distributions.normalizers.guards import check_potential, refuse_compilation
from pyro_ebm.distributions.normalizers.population import Population, counts, relative_ess
from pyro_ebm.distributions.normalizers.refresh import refreshed
from pyro_ebm.distributions.normalizers.start import started
from pyro_ebm.distributions.normalizers.surrogate import check_anchor, surrogate
from pyro_ebm.mcmc.moves import EnergyDensity, Move, Tuning, move_for

# Draws are walkers moved on so many times, so that they are not the walkers that learning has seen.
_DRAW_MOVES = 10


class PersistentWalkers:
    """Log Z by weighted persistent walkers: the default for learning.

    Walkers start at draws of the base, where log Z is zero, and follow the density through every change of its
    parameters: their weights take in the change (Jarzynski's work), and moves that leave the new density invariant let
    them spread: Metropolis-adjusted Langevin where it is continuous; where it is discrete, the energy's own Gibbs step
    or Gibbs with gradients. So log Z is *tracked*, and its gradient

        ∇ log Z = -Σ_j w_j ∇E(y_j)

    does not hang on how well the moves mix between modes. As a function of the parameters it is the surrogate
    `sg[l] + log Σ_j w_j exp(-E(y_j) + sg[E(y_j)])`, whose value, gradient and Hessian are right. Walkers that drive the
    gradient and walkers that track the value are separate, for those that learning has reacted to tell a log Z that is
    too low.

    They are refreshed once for every change of the parameters, detected by value, when a gradient is asked for; never
    under `torch.no_grad`, and never inside MCMC, which needs `freeze()` where it samples parameters of the energy.

    Args:
        num_walkers: how many drive the gradient.
        num_steps: of each refresh; by default 2 of Langevin dynamics, 1 of Gibbs, one for each element of Gibbs with
            gradients.
        num_trackers: how many more track log Z; by default as many. They are rounded up to fill their groups.
        num_groups: of trackers, whose spread gives the standard error.
        generator: of all random numbers; by default one of its own, seeded from torch's.

    References:
        Carbone, Hua, Coste and Vanden-Eijnden 2023, Efficient training of energy-based models using Jarzynski equality.
        Tieleman 2008, Training restricted Boltzmann machines using approximations to the likelihood gradient.

    >>> import torch, pyro.distributions as dist
    >>> from pyro_ebm import EnergyDistribution, NeuralEnergy
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1), torch.nn.Flatten(0))
    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> walkers = PersistentWalkers(num_walkers=100)
    >>> p = EnergyDistribution(NeuralEnergy(net, event_shape=(2,)), base, log_normalizer=walkers)
    >>> p.log_prob(torch.zeros(5, 2)).mean().backward()
    """

    def __init__(
        self,
        num_walkers: int = 2000,
        *,
        num_steps: int | None = None,
        num_trackers: int | None = None,
        num_groups: int = 16,
        generator: Generator | None = None,
    ) -> None:
        trackers = num_walkers if num_trackers is None else num_trackers
        if min(num_walkers, trackers) < 4 or (num_steps is not None and num_steps < 1):
            raise ValueError(
                f"PersistentWalkers: got num_walkers={num_walkers}, num_trackers={num_trackers} and "
                f"num_steps={num_steps}, expected at least 4 of each, and 1 step."
            )
        self._num_walkers = num_walkers
        self._num_trackers, self._num_groups = counts(trackers, num_groups)
        self.num_steps = num_steps
        self._generator = generator
        self._population: Population | None = None
        self._fingerprint: Fingerprint = ()
        self.is_frozen = False
        self.num_refreshes = 0
        self.acceptance_rate = float("nan")

    # What an energy distribution asks

    def log_normalizer(self, distribution: EnergyDensity, /) -> Tensor:
        """See `Normalizer`.

        Raises:
            NormalizerError: if the walkers have nowhere to start: a density without a base.
            StepTooLargeError: if the parameters changed too much at once.
            WalkersDivergedError: if walkers or their energies are not finite.
            AnchorError: if they are frozen too far from the present parameters.
            StochasticPotentialError: under MCMC over parameters of the energy, if they are not frozen.
            CompiledWalkersError: in a program that is being traced or compiled.
        """
        if not self.is_frozen:
            refuse_compilation()
        in_mcmc = moved_by_chains()
        population = self._ready(distribution)
        if self.is_frozen or in_mcmc or not torch.is_grad_enabled():
            return self._off_anchor(distribution, population, in_mcmc=in_mcmc)
        move = move_for(distribution)
        value = population.value.detach().requires_grad_(move.needs_gradient)
        log_density = distribution.unnormalized_log_prob(value)
        if same(fingerprint(distribution), self._fingerprint, log_density, population.log_density):
            drivers = log_density[: population.num_drivers]
        else:
            steps = self.num_steps or move.usual_steps
            population = self._follow(distribution, value, log_density, move, steps)
            drivers = distribution.unnormalized_log_prob(population.value[: population.num_drivers])
        anchor = population.log_density[: population.num_drivers]
        return surrogate(population.log_normalizer(), population.driver_log_weights(), drivers, anchor)

    def _off_anchor(self, distribution: EnergyDensity, population: Population, *, in_mcmc: bool) -> Tensor:
        """Log Z by all walkers where they are, which are not moved."""
        log_density = distribution.unnormalized_log_prob(population.value)
        log_weights = population.all_log_weights()
        if not self.is_frozen:
            check_potential(log_density, scored_site())
        elif not in_mcmc:
            check_anchor(log_weights, log_density.detach(), population.log_density)
        return surrogate(population.log_normalizer(), log_weights, log_density, population.log_density)

    def _ready(self, distribution: EnergyDensity) -> Population:
        """The walkers, started if this is the first call."""
        return self._start(distribution) if self._population is None else self._population

    def _start(self, distribution: EnergyDensity) -> Population:
        if self._generator is None:
            self._generator = seeded_generator(like_of(distribution.energy).device)
        self._population = started(
            distribution, self._num_walkers, self._num_trackers, self._num_groups, self._generator
        )
        self._fingerprint = kept(fingerprint(distribution))
        return self._population

    def _follow(
        self, distribution: EnergyDensity, value: Tensor, log_density: Tensor, move: Move, num_steps: int
    ) -> Population:
        """Take the walkers to the present parameters, for which the density is known where they are."""
        old, generator = self._required()
        when = f"PersistentWalkers, after {self.num_refreshes} refreshes"
        self._population, moved = refreshed(
            distribution, old, value, log_density, move, generator, num_steps=num_steps, when=when
        )
        self._fingerprint = kept(fingerprint(distribution))
        self.num_refreshes += 1
        self.acceptance_rate = float(moved.acceptance_rate.mean())
        return self._population

    # What a user asks

    @property
    def is_started(self) -> bool:
        """Whether there are walkers: since the first call."""
        return self._population is not None

    @property
    def value(self) -> Tensor:
        """Log Z at the anchor, in nats, `(*batch,)`.

        Raises:
            RuntimeError: before the first call.
        """
        return self._required()[0].log_normalizer()

    @property
    def standard_error(self) -> Tensor:
        """Of `value`, in nats, `(*batch,)`, by the spread of the groups of trackers."""
        return self._required()[0].standard_error()

    @property
    def num_walkers(self) -> int:
        """How many drive the gradient."""
        return self._num_walkers

    @property
    def ess(self) -> Tensor:
        """The share of the walkers that drive the gradient which count, `(*batch,)`."""
        population, _ = self._required()
        return relative_ess(population.log_weight[: population.num_drivers])

    def report(self) -> dict[str, Tensor]:
        """What there is to know of the walkers, each `(*batch,)` or `()`.

        `log_density` is the mean of the unnormalised log density over the walkers that drive the gradient.
        """
        population, _ = self._required()
        weights, drivers = population.driver_log_weights().exp(), population.log_density[: population.num_drivers]
        return {
            "log_density": (weights * drivers).sum(0),
            "log_normalizer": self.value,
            "log_normalizer_error": self.standard_error,
            "ess": self.ess,
            "acceptance_rate": torch.tensor(self.acceptance_rate),
        }

    def refresh(self, distribution: EnergyDensity, num_steps: int) -> None:
        """Follow the density to its present parameters, and move the walkers there for long."""
        with torch.no_grad():
            population = self._ready(distribution)
            log_density = distribution.unnormalized_log_prob(population.value)
            self._follow(distribution, population.value, log_density, move_for(distribution), num_steps)

    def restart(self, distribution: EnergyDensity, *, num_trackers: int | None = None) -> None:
        """Start anew, by annealing from the base to the density as it is.

        What trackers tell of log Z after a long training has the noise of all of its way; this has that of one
        annealing, and takes no longer than some hundreds of steps.

        Args:
            distribution: the density.
            num_trackers: how many are to track log Z from now on; by default as many as did.

        Raises:
            InitializationError: if annealing does not reach the density; the walkers are then what they were.
        """
        if num_trackers is not None:
            self._num_trackers, self._num_groups = counts(num_trackers, self._num_groups)
        self._start(distribution)

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
        with torch.no_grad():
            population, _ = self._required()
            log_density = distribution.unnormalized_log_prob(population.value)
            check_anchor(population.all_log_weights(), log_density, population.log_density)

    def draw(self, distribution: EnergyDensity, sample_shape: Size) -> Tensor:
        """Values of walkers, by their weights, and moved on: draws that are as good as the walkers.

        Returns:
            `(*sample, *batch, *event)`.
        """
        with torch.no_grad():
            self._ready(distribution)
            population, generator = self._required()
            weights = population.all_log_weights().exp()
            count, batch = sample_shape.numel(), weights.shape[1:]
            index = torch.multinomial(weights.reshape(len(weights), -1).mT, count, True, generator=generator)
            index = index.mT.reshape(count, *batch, *[1] * len(distribution.event_shape))
            value, move = population.value.take_along_dim(index, 0), move_for(distribution)
            log_density, steps = distribution.unnormalized_log_prob, _DRAW_MOVES * move.usual_steps
            moved = move(log_density, value, population.tuning, generator, num_steps=steps)
            return moved.value.reshape(sample_shape + population.value.shape[1:])

    def _required(self) -> tuple[Population, Generator]:
        if self._population is None or self._generator is None:
            raise RuntimeError(
                "PersistentWalkers: got no walkers yet, expected them to be started. Call log_prob of their "
                "distribution first."
            )
        return self._population, self._generator

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on: walkers, weights, log Z and the state of the generator."""
        walkers = {} if self._population is None else self._population._asdict()
        walkers.pop("tuning", None)
        return {
            "population": walkers or None,
            "tuning": None if self._population is None else self._population.tuning._asdict(),
            "fingerprint": tuple(self._fingerprint),
            "generator": None if self._generator is None else self._generator.get_state(),
            "is_frozen": self.is_frozen,
            "num_refreshes": self.num_refreshes,
            "acceptance_rate": self.acceptance_rate,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        saved = state["population"]
        self._population = None if saved is None else Population(**{**saved, "tuning": Tuning(**state["tuning"])})
        self._fingerprint = tuple(state["fingerprint"])
        self._generator = None
        if state["generator"] is not None:
            self._generator = Generator("cpu" if self._population is None else self._population.value.device)
            self._generator.set_state(state["generator"])
        self.is_frozen, self.num_refreshes = state["is_frozen"], state["num_refreshes"]
        self.acceptance_rate = state["acceptance_rate"]

    def __getstate__(self) -> dict[str, Any]:
        """Generators are not pickled; their states are."""
        kept = {"_num_walkers", "_num_trackers", "_num_groups", "num_steps"}
        return {**{name: vars(self)[name] for name in kept}, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what was pickled."""
        saved = state.pop("state")
        vars(self).update(state)
        self.load_state_dict(saved)
