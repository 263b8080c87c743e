"""`ConditionalWalkers`: walkers for each datum, for energies whose log Z depends on the datum's context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import AnchorError, EnergyShapeError
from pyro_ebm._core.randomness import seeded_generator
from pyro_ebm.distributions._caller import moved_by_chains
from pyro_ebm.distributions.normalizers.draws import drawn
from pyro_ebm.distributions.normalizers.fingerprint import close
from pyro_ebm.distributions.normalizers.guards import refuse_compilation
from pyro_ebm.distributions.normalizers.held import check_held, held
from pyro_ebm.distributions.normalizers.population import Population, counts, restored, saved
from pyro_ebm.distributions.normalizers.refresh import evaluated, is_step_too_large, moved_on, reweighted
from pyro_ebm.distributions.normalizers.start import started
from pyro_ebm.distributions.normalizers.stillness import Stillness
from pyro_ebm.distributions.normalizers.surrogate import check_certain, check_fresh, surrogate
from pyro_ebm.mcmc.moves import EnergyDensity, Move, Start, Tuning, move_for

_UNSEEN = (
    "{} data that no walker has seen, expected walkers to be started for them, by log_prob of a distribution with "
    "walkers[index], before."
)
_WHEN = "walkers of data"  # errors begin with it


class ConditionalWalkers:
    """Log Z(c) of a conditional energy E(x; c) by weighted walkers for each datum, indexed as a plate is.

    In a model `walkers[i]` is the normaliser of the data at a plate's indices `i`, whose contexts the energy has in its
    batch shape. Walkers of a datum are taken up where they were left when it was seen last, and follow the parameters
    from there, as `PersistentWalkers` do; where these have changed so much that too few walkers are of use, they start
    anew, annealed from the base. For contexts that no walker has seen, at test time, use `PersistentWalkers` of their
    own for each batch. Parameters of the energy are sampled by MCMC after `freeze()`, in a plate of all data.

    Args:
        num_data: the size of the plate.
        num_walkers: for each datum, that drive the gradient; as many more track log Z. A few will do to learn by: their
            noise averages over the data. The value is low by about half of its variance, as the log of any mean is.
        num_steps: of each refresh, as for `PersistentWalkers`.
        num_groups: of trackers, whose spread gives the standard error.
        generator: of all random numbers; by default one of its own, seeded from torch's.

    >>> import pyro, torch, pyro.distributions as dist
    >>> from pyro_ebm import EnergyDistribution, energy
    >>> context, x = torch.linspace(0.0, 1.0, 50), torch.randn(50)
    >>> walkers = ConditionalWalkers(50)
    >>> def model():
    ...     slope = pyro.param("slope", torch.tensor(0.0))
    ...     with pyro.plate("data", 50, subsample_size=10) as i:
    ...         tilt = energy(lambda x: slope * context[i] * x, event_shape=(), batch_shape=(10,))
    ...         pyro.sample("x", EnergyDistribution(tilt, dist.Normal(0.0, 1.0), log_normalizer=walkers[i]), obs=x[i])
    >>> svi = pyro.infer.SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    >>> loss = svi.step()
    """

    def __init__(
        self,
        num_data: int,
        num_walkers: int = 16,
        *,
        num_steps: int | None = None,
        num_groups: int = 4,
        generator: Generator | None = None,
    ) -> None:
        if num_data < 1 or num_walkers < 4 or (num_steps is not None and num_steps < 1):
            raise ValueError(
                f"ConditionalWalkers: got num_data={num_data}, num_walkers={num_walkers} and num_steps={num_steps}, "
                "expected at least 1 datum, 4 walkers and 1 step."
            )
        self.num_data, self.num_steps = num_data, num_steps
        trackers, groups = counts(num_walkers, num_groups)
        self._counted = num_walkers, trackers, groups
        self._generator = generator
        self._population: Population | None = None
        self._seen = torch.zeros(num_data, dtype=torch.bool)
        self.stillness = Stillness()
        self.is_frozen = False

    def __getitem__(self, index: Tensor | slice) -> WalkersOfData:
        """The normaliser of a minibatch: of the data at an index `(n,)`, such as a plate gives, or a slice."""
        rows = torch.arange(self.num_data)[index.cpu() if isinstance(index, Tensor) else index]
        if rows.dim() != 1:
            raise EnergyShapeError(
                f"ConditionalWalkers: got an index of shape {tuple(rows.shape)}, expected (n,), a plate's indices."
            )
        return WalkersOfData(self, rows)

    def taken(self, rows: Tensor, distribution: EnergyDensity) -> tuple[Population, Generator]:
        """The walkers of some data, started where there are none."""
        if distribution.batch_shape != rows.shape:
            raise EnergyShapeError(
                f"ConditionalWalkers: got an energy of batch shape {tuple(distribution.batch_shape)} for {len(rows)} "
                f"data, expected {tuple(rows.shape)}: one context for each. Bind contexts by the plate's indices."
            )
        if self._generator is None:
            self._generator = seeded_generator(like_of(distribution.energy).device)
        new = ~self._seen[rows]
        if bool(new.any()):
            if self.is_frozen:
                raise AnchorError(f"ConditionalWalkers, frozen: got {_UNSEEN.format(int(new.sum()))}")
            fresh, _ = started(distribution, *self._counted, self._generator)
            if self._population is None:
                self._population = _room(fresh, self.num_data)
            self._population.put(rows[new], fresh.at(new.nonzero().flatten()))
            self._seen[rows] = True
        return self._required().at(rows), self._generator

    def left(self, rows: Tensor, population: Population) -> None:
        """Leave the walkers of some data where they are now."""
        self._required().put(rows, population)

    def seen(self, rows: Tensor) -> Population:
        """The walkers of some data, which must have been started."""
        if bool(self._seen[rows].all()):
            return self._required().at(rows)
        raise RuntimeError(f"ConditionalWalkers: got {_UNSEEN.format(int((~self._seen[rows]).sum()))}")

    def restarted(self, distribution: EnergyDensity, old: Population, which: Tensor) -> Population:
        """Those at `which`, `(n,)` booleans, annealed anew from the base, and the others as they are."""
        if self._generator is None:
            raise RuntimeError("ConditionalWalkers: got no walkers yet, expected them to be started.")
        rows = which.nonzero().flatten()
        fresh, _ = started(distribution, *self._counted, self._generator)
        old.put(rows, fresh.at(rows))
        return old

    def freeze(self) -> None:
        """Hold the walkers where they are: log Z of each datum becomes a fixed function, fit for MCMC over parameters.

        It is right near the parameters where they are frozen; `AnchorError` says where it is not.
        """
        self._required()
        self.is_frozen = True

    def unfreeze(self) -> None:
        """Let the walkers follow the parameters again."""
        self.is_frozen = False

    def _required(self) -> Population:
        if self._population is None:
            raise RuntimeError(
                "ConditionalWalkers: got no walkers yet, expected them to be started. Call log_prob of a distribution "
                "with walkers[index] first."
            )
        return self._population

    @property
    def value(self) -> Tensor:
        """Log Z of each datum when it was seen last, in nats, `(num_data,)`; NaN where it was not."""
        value = self._required().log_normalizer()
        return value.masked_fill(~self._seen.to(value.device), torch.nan)

    @property
    def standard_error(self) -> Tensor:
        """Of `value`, in nats, `(num_data,)`."""
        value = self._required().standard_error()
        return value.masked_fill(~self._seen.to(value.device), torch.nan)

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            **saved(self._population, self._generator),
            "seen": self._seen.clone(),
            "is_frozen": self.is_frozen,
            "num_still": self.stillness.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self._population, self._generator = restored(state)
        self._seen = state["seen"].clone()
        self.is_frozen, self.stillness = state["is_frozen"], Stillness(state["num_still"])

    def __getstate__(self) -> dict[str, Any]:
        """Generators are not pickled; their states are."""
        kept = {"num_data", "num_steps", "_counted"}
        return {**{name: vars(self)[name] for name in kept}, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what was pickled."""
        self.load_state_dict(state.pop("state"))
        vars(self).update(state)


class WalkersOfData:
    """The normaliser of a minibatch, with the walkers of its data.

    Args:
        walkers: of all data.
        rows: which data, `(n,)`.
    """

    def __init__(self, walkers: ConditionalWalkers, rows: Tensor) -> None:
        self._walkers, self._rows = walkers, rows

    def log_normalizer(self, distribution: EnergyDensity, /) -> Tensor:
        """See `Normalizer`: `(n,)`.

        Raises:
            EnergyShapeError: if the batch shape is not `(n,)`.
            NormalizerError: as for `PersistentWalkers`, but where parameters change much: the walkers then start anew.
        """
        if not self.is_frozen:
            refuse_compilation()
        population, generator = self._walkers.taken(self._rows, distribution)
        if self.is_frozen or moved_by_chains() or not torch.is_grad_enabled():
            return held(distribution, population, is_frozen=self.is_frozen, check_report=_check_report)
        move = move_for(distribution)
        at = evaluated(distribution, population, move, population.num_drivers)
        if not close(at.log_density, population.log_density):
            too_large = is_step_too_large(population, at.log_density)
            if bool(too_large.any()):
                population = self._walkers.restarted(distribution, population, too_large)
                at = evaluated(distribution, population, move, population.num_drivers)
            steps = self._walkers.num_steps or move.usual_steps
            population = reweighted(population, at.log_density, _WHEN)
            self._move(distribution, population, move, generator, steps, at.start)
        return surrogate(population.log_normalizer(), population.driver_log_weights(), at.drivers, at.drivers)

    def _move(
        self,
        distribution: EnergyDensity,
        population: Population,
        move: Move,
        generator: Generator,
        num_steps: int,
        start: Start | None,
    ) -> None:
        """Move walkers, and leave them where they are then."""
        left, moved = moved_on(distribution, population, move, generator, num_steps=num_steps, start=start, when=_WHEN)
        self._walkers.left(self._rows, left)
        self._walkers.stillness.note("ConditionalWalkers", float(moved.acceptance_rate.mean()), move.least_acceptance)

    def refresh(self, distribution: EnergyDensity, num_steps: int) -> None:
        """Start the walkers of these data anew at the present parameters, and move them there for long."""
        with torch.no_grad():
            self.restart(distribution)
            population, generator = self._walkers.taken(self._rows, distribution)
            self._move(distribution, population, move_for(distribution), generator, num_steps, None)

    def restart(self, distribution: EnergyDensity) -> None:
        """Start the walkers of these data anew, by annealing from the base to the density as it is."""
        with torch.no_grad():
            population, _ = self._walkers.taken(self._rows, distribution)
            every = torch.ones(len(self._rows), dtype=torch.bool)
            self._walkers.left(self._rows, self._walkers.restarted(distribution, population, every))

    @property
    def is_frozen(self) -> bool:
        """Whether all walkers are held where they are."""
        return self._walkers.is_frozen

    def check(self, distribution: EnergyDensity) -> None:
        """See `PersistentWalkers.check`: of these data.

        Raises:
            AnchorError: if parameters are too far from those at which the walkers were frozen.
        """
        check_held(distribution, self._walkers.seen(self._rows))

    def draw(self, distribution: EnergyDensity, sample_shape: Size) -> Tensor:
        """Values of walkers, by their weights, and moved on, `(*sample, n, *event)`."""
        return drawn(distribution, *self._walkers.taken(self._rows, distribution), sample_shape)


def _check_report(population: Population, log_density: Tensor) -> None:
    check_fresh(population.all_log_weights(), log_density, population.log_density)
    check_certain(population.standard_error())


def _room(like: Population, num_data: int) -> Population:
    """A population for all data, to be filled."""
    per_walker = like.value, like.log_density, like.log_weight, like.log_partition
    value, log_density, log_weight, log_partition = (
        each.new_zeros(len(each), num_data, *each.shape[2:]) for each in per_walker
    )
    tuning = Tuning(*(each.new_zeros(num_data, *each.shape[1:]) for each in like.tuning))
    return Population(value, log_density, log_weight, log_partition, tuning, like.num_drivers)
