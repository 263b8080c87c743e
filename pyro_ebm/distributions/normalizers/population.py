"""Weighted walkers that follow a density while it changes.

Each change multiplies the weight of a walker by the ratio of the densities where it is (Jarzynski's work), and moves
that leave the new density invariant need no weight; so the weighted walkers stay right, whatever their mixing, and the
mean of the weights is the ratio of the normalising constants:

    log w ← log w + u_new(y) - u_old(y),    Z_new / Z_first = E[w].

Some of the walkers drive the gradient of learning, and some only track log Z: the parameters follow the noise of the
former, so that their own weights would tell a log Z that is too low. Trackers come in groups that never exchange
walkers, so the spread of the groups' answers is an honest standard error.

References:
    Jarzynski 1997, Nonequilibrium equality for free energy differences.
    Neal 2001, Annealed importance sampling.
    Carbone, Hua, Coste and Vanden-Eijnden 2023, Efficient training of energy-based models using Jarzynski equality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.log_space import finite_max
from pyro_ebm.mcmc.moves import Tuning

# Weights are made equal again when fewer than this share of the walkers count.
_RESAMPLE_BELOW = 0.5


class Population(NamedTuple):
    """The walkers: first those that drive the gradient, then the trackers, group by group in turn.

    Attributes:
        value: where they are, `(walkers, *batch, *event)`.
        log_density: unnormalised, there, `(walkers, *batch)`.
        log_weight: `(walkers, *batch)`, in double precision.
        log_partition: log Z of each group of trackers when it was last resampled, `(groups, *batch)`, in double.
        tuning: of their moves.
        num_drivers: how many of them drive the gradient; the others track log Z.
    """

    value: Tensor
    log_density: Tensor
    log_weight: Tensor
    log_partition: Tensor
    tuning: Tuning
    num_drivers: int

    @property
    def num_trackers(self) -> int:
        """How many walkers track log Z."""
        return len(self.value) - self.num_drivers

    def group_log_partitions(self) -> Tensor:
        """Log Z by each group of trackers, `(groups, *batch)`, in double."""
        return self.log_partition + _log_mean_exp(self._by_group(self.log_weight))

    def log_normalizer(self) -> Tensor:
        """Log Z by all trackers, `(*batch,)`, in double."""
        return _log_mean_exp(self.group_log_partitions())

    def standard_error(self) -> Tensor:
        """Of `log_normalizer`, in nats, by the spread of the groups, `(*batch,)`, in double."""
        ratios = (self.group_log_partitions() - self.log_normalizer()).exp()
        return ratios.std(0) / math.sqrt(len(ratios))

    def driver_log_weights(self) -> Tensor:
        """Of the walkers that drive the gradient, summing to one, `(drivers, *batch)`, in double."""
        log_weight = self.log_weight[: self.num_drivers]
        return log_weight - torch.logsumexp(log_weight, 0)

    def all_log_weights(self) -> Tensor:
        """Of all walkers, drivers and trackers as one sample, summing to one, `(walkers, *batch)`, in double."""
        groups = self._by_group(self.log_weight) + self.log_partition
        trackers = groups.reshape(self.num_trackers, *groups.shape[2:])
        share = math.log(self.num_drivers / len(self.value)), math.log(self.num_trackers / len(self.value))
        return torch.cat([self.driver_log_weights() + share[0], trackers - torch.logsumexp(trackers, 0) + share[1]])

    def reweighted(self, log_density: Tensor) -> Population:
        """For a changed density, known where the walkers are, `(walkers, *batch)`."""
        work = log_density.double() - self.log_density.double()
        return self._replace(log_density=log_density, log_weight=self.log_weight + work)

    def forgetful(self) -> Population:
        """With equal weights, what they told of log Z taken over by all groups."""
        value = self.log_normalizer().expand_as(self.log_partition).clone()
        return self._replace(log_weight=torch.zeros_like(self.log_weight), log_partition=value)

    def at(self, index: Tensor) -> Population:
        """Those of some elements of a batch `(N,)`, for an index `(n,)`."""
        return Population(
            self.value[:, index],
            self.log_density[:, index],
            self.log_weight[:, index],
            self.log_partition[:, index],
            Tuning(*(each[index] for each in self.tuning)),
            self.num_drivers,
        )

    def put(self, index: Tensor, new: Population) -> None:
        """Write those of some elements of a batch, in place."""
        self.value[:, index], self.log_density[:, index] = new.value, new.log_density
        self.log_weight[:, index], self.log_partition[:, index] = new.log_weight, new.log_partition
        for mine, other in zip(self.tuning, new.tuning, strict=True):
            mine[index] = other

    def resampled(self, generator: Generator, *, below: float = _RESAMPLE_BELOW) -> Population:
        """With equal weights in each group of which less than a share of the walkers count, half by default."""
        drivers = _chosen(self.log_weight[: self.num_drivers], generator, below)
        groups = self._by_group(self.log_weight)
        trackers = _chosen(groups, generator, below)
        if drivers is None and trackers is None:
            return self
        new = self
        if drivers is not None:
            new = new._taken(slice(None, self.num_drivers), 1, drivers)
        if trackers is not None:
            log_partition = torch.where(trackers.changed, self.group_log_partitions(), self.log_partition)
            new = new._taken(slice(self.num_drivers, None), len(self.log_partition), trackers)
            new = new._replace(log_partition=log_partition)
        return new

    def _by_group(self, values: Tensor) -> Tensor:
        """What is said of walkers as that of trackers, `(trackers of a group, groups, *batch)`."""
        return values[self.num_drivers :].reshape(-1, len(self.log_partition), *values.shape[1:])

    def _taken(self, part: slice, groups: int, choice: _Choice) -> Population:
        """Some walkers replaced by others of their group."""
        batch = self.log_weight.shape[1:]
        index, changed = (each.reshape(-1, groups, *batch) for each in (choice.rows, choice.changed))

        def take(tensor: Tensor) -> Tensor:
            inside = tensor[part].reshape(-1, groups, *tensor.shape[1:])
            where = index.reshape(*index.shape, *[1] * (inside.dim() - index.dim()))
            new = inside.take_along_dim(where, 0).reshape(tensor[part].shape)
            return torch.cat([new, tensor[part.stop :]] if part.start is None else [tensor[: part.start], new])

        inside = self.log_weight[part].reshape(-1, groups, *batch)
        log_weight = self.log_weight.clone()
        log_weight[part] = torch.where(changed, 0.0, inside).reshape(self.log_weight[part].shape)
        return self._replace(value=take(self.value), log_density=take(self.log_density), log_weight=log_weight)


def saved(population: Population | None, generator: Generator | None) -> dict[str, Any]:
    """Walkers, if there are any yet, and the state of their generator, as tensors to be saved: copies."""
    walkers = {} if population is None else population._asdict()
    tuning = walkers.pop("tuning", None)
    return {
        "population": {name: _copied(value) for name, value in walkers.items()} or None,
        "tuning": None if tuning is None else {name: _copied(value) for name, value in tuning._asdict().items()},
        "generator": None if generator is None else generator.get_state(),
    }


def restored(state: Mapping[str, Any]) -> tuple[Population | None, Generator | None]:
    """What `saved` made."""
    population, generator = None, None
    if state["population"] is not None:
        tuning = Tuning(**{name: _copied(value) for name, value in state["tuning"].items()})
        parts = {name: _copied(value) for name, value in state["population"].items()}
        population = Population(**parts, tuning=tuning)
    if state["generator"] is not None:
        generator = Generator("cpu" if population is None else population.value.device)
        generator.set_state(state["generator"])
    return population, generator


def _copied(value: Any) -> Any:
    """A copy of a tensor; numbers are their own."""
    return value.clone() if isinstance(value, Tensor) else value


def counts(num_trackers: int, num_groups: int) -> tuple[int, int]:
    """Numbers of trackers and of their groups, which are of equal size."""
    groups = max(2, min(num_groups, num_trackers))
    return math.ceil(num_trackers / groups) * groups, groups


def relative_ess(log_weight: Tensor) -> Tensor:
    """The share of walkers that count, `(Σ w)² / (n Σ w²)`, of log weights `(n, *batch)` to `(*batch,)`."""
    weight = (log_weight - finite_max(log_weight, 0)).exp()
    return weight.sum(0).square() / (len(weight) * weight.square().sum(0)).clamp(min=torch.finfo(weight.dtype).tiny)


class _Choice(NamedTuple):
    """Which walker takes each place, `(n, *columns)`, and which columns change, `(*columns,)`."""

    rows: Tensor
    changed: Tensor


def _chosen(log_weight: Tensor, generator: Generator, below: float) -> _Choice | None:
    """Systematic resampling of those columns of `(n, *columns)` that need it; `None` if none does."""
    changed = relative_ess(log_weight) < below
    if not bool(changed.any()):
        return None
    count, columns = len(log_weight), log_weight.shape[1:]
    weight = (log_weight - finite_max(log_weight, 0)).exp().reshape(count, -1).mT
    cumulative = weight.cumsum(-1)
    start = torch.rand(len(weight), 1, generator=generator, dtype=weight.dtype, device=weight.device)
    points = (start + torch.arange(count, device=weight.device)) / count * cumulative[:, -1:]
    index = torch.searchsorted(cumulative.contiguous(), points.contiguous(), right=True).clamp(max=count - 1)
    own = torch.arange(count, device=weight.device).unsqueeze(-1)
    index = torch.where(changed.flatten(), index.mT, own)
    return _Choice(index.reshape(count, *columns), changed)


def _log_mean_exp(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - math.log(len(values))
