"""Effect handlers that run a model at the places of each datum's chains."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Generator, Tensor

from pyro_ebm._core.errors import BatchingError, InitializationError, UnnormalizedError
from pyro_ebm._core.randomness import seeded
from pyro_ebm.distributions.energy_distribution import energy_distribution_of
from pyro_ebm.distributions.unnormalized import unnormalized_log_prob
from pyro_ebm.infer.coordinates import unconstrained
from pyro_ebm.infer.data_plate import DataPlate, SiteLayout
from pyro_ebm.infer.posterior_chains import PosteriorChains
from pyro_ebm.infer.structure import is_deterministic, is_random_subsample, is_subsample


class VisitChains(Messenger):  # type: ignore[misc]
    """Looks up where the chains of a minibatch are; those of new data start at draws from the prior, or its base.

    Args:
        plate: the plate of the data.
        chains: of all data.
        drawn: the indices of the minibatch; `None` where the model chooses them.
        generator: of the draws.

    Attributes:
        indices: of the data in the minibatch, `(data,)`.
    """

    def __init__(self, plate: DataPlate, chains: PosteriorChains, drawn: Tensor | None, generator: Generator) -> None:
        super().__init__()
        self._plate, self._chains, self._drawn, self._generator = plate, chains, drawn, generator
        self._old: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self.indices = torch.empty(0, dtype=torch.long)

    @property
    def free(self) -> Tensor:
        """Where the chains are, `(chains, data, dim)`."""
        return torch.cat([self._rows[name] for name in self._plate.sites], -1)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        put_indices(msg, self._plate, self._drawn)
        if not _is_latent(msg):
            return
        name, fn = msg["name"], msg["fn"]
        site = _site_of(self._plate, name)
        transform, free = unconstrained(fn, name), self._old[name]
        new = self._chains.are_new(self.indices)
        if bool(new.any()):
            with seeded(self._generator, self._generator.device):
                drawn = transform.inv(_start(fn)).to(free)
            if not bool(drawn.isfinite().all()):
                raise InitializationError(
                    f'MonteCarloEM: at site "{name}" got a draw from the prior on the edge of its support, where no '
                    "chain can start, expected one inside. Check the prior there."
                )
            free = torch.where(new.reshape(-1, *[1] * (free.dim() - site.dim - 1)), drawn, free)
        self._rows[name] = self._plate.to_rows(name, free)
        msg["value"], msg["done"] = transform(free), True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if is_subsample(msg) and msg["name"] == self._plate.name:
            self.indices = msg["value"]
            self._old = self._plate.to_sites(self._chains.at(self.indices))


class ChainValues(Messenger):  # type: ignore[misc]
    """Puts the chains of a minibatch at free values.

    Args:
        plate: the plate of the data.
        free: `(chains, data, dim)`.
        indices: of the data in the minibatch, `(data,)`.

    Attributes:
        values: by site.
        log_jacobian: of the values, `(chains, data)`.
    """

    def __init__(self, plate: DataPlate, free: Tensor, indices: Tensor) -> None:
        super().__init__()
        self._plate, self._free, self._indices = plate, plate.to_sites(free), indices
        self.values: dict[str, Tensor] = {}
        self.log_jacobian: Tensor = free.new_zeros(free.shape[:2])

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        put_indices(msg, self._plate, self._indices)
        if not _is_latent(msg):
            return
        name = msg["name"]
        site = _site_of(self._plate, name)
        transform, free = unconstrained(msg["fn"], name), self._free[name]
        value = transform(free)
        jacobian = transform.log_abs_det_jacobian(free, value)
        self.log_jacobian = self.log_jacobian + self._plate.sum_by_datum(jacobian, site.dim)
        self.values[name] = msg["value"] = value
        msg["done"] = True


class LogDensityByDatum(Messenger):  # type: ignore[misc]
    """Adds up the log joint density of each datum: without log Z, and without the scale of a minibatch.

    Args:
        plate: the plate of the data.
        conditional: names of sites whose log Z depends on latent values, and stays.
        like: zeros `(chains, data)`.

    Attributes:
        total: `(chains, data)`.
    """

    moves_chains = True  # walkers stay where they are

    def __init__(self, plate: DataPlate, conditional: Collection[str], like: Tensor) -> None:
        super().__init__()
        self._plate, self._conditional = plate, conditional
        self.total = like

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if is_subsample(msg) or is_deterministic(msg) or not in_plate(msg, self._plate):
            return
        fn, value = msg["fn"], msg["value"]
        log_prob = fn.log_prob(value) if msg["name"] in self._conditional else unnormalized_log_prob(fn, value)
        log_prob = scale_and_mask(log_prob, msg["scale"] / _scale_of(msg, self._plate), msg["mask"])
        self.total = self.total + self._plate.sum_by_datum(log_prob, log_prob.dim() + self._plate.dim)


class FindConditional(Messenger):  # type: ignore[misc]
    """Finds the sites whose log Z depends on latent values, and refuses what couples the data.

    Args:
        plate: the plate of the data.
        free: what the latent values were made of, with a gradient.

    Attributes:
        conditional: names of sites.
    """

    moves_chains = True

    def __init__(self, plate: DataPlate, free: Tensor) -> None:
        super().__init__()
        self._plate, self._free = plate, free
        self.conditional: set[str] = set()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if is_subsample(msg) or is_deterministic(msg):
            return
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if not in_plate(msg, self._plate):
            if self._depends(fn.log_prob(value)):
                raise BatchingError(
                    f'MonteCarloEM: got site "{name}" outside of plate "{self._plate.name}", which depends on the '
                    "latent values of the data in it, expected data that are independent of one another. Put it in "
                    "the plate, or train by SVI."
                )
            return
        energy = energy_distribution_of(fn)
        if energy is None or not self._depends(unnormalized_log_prob(fn, value.detach())):
            return
        if not energy.is_normalized:
            raise UnnormalizedError(
                f'MonteCarloEM: at site "{name}" got an unnormalised energy that depends on other latent sites, '
                "expected one with its log Z, which depends on them too. Give it: EnergyDistribution(energy, "
                "log_normalizer=energy.log_partition()) or Exact()."
            )
        self.conditional.add(name)

    def _depends(self, log_prob: Tensor) -> bool:
        if not log_prob.requires_grad:
            return False
        (found,) = torch.autograd.grad(log_prob.sum(), self._free, allow_unused=True, retain_graph=True)
        return found is not None


def put_indices(msg: dict[str, Any], plate: DataPlate, indices: Tensor | None) -> None:
    """Give the plate of the data its indices, where it would draw them.

    Raises:
        BatchingError: if it has another size than it had in the first step.
    """
    if not is_subsample(msg) or msg["name"] != plate.name:
        return
    if msg["fn"].size != plate.size:
        raise BatchingError(
            f'MonteCarloEM: got a plate "{plate.name}" of size {msg["fn"].size}, expected {plate.size}, as in the '
            "first step: every datum has chains of its own. Make another MonteCarloEM for other data."
        )
    if indices is not None and is_random_subsample(msg):
        msg["value"], msg["done"] = indices, True


def in_plate(msg: dict[str, Any], plate: DataPlate) -> bool:
    """Whether a site lies in the plate of the data."""
    return any(frame.name == plate.name for frame in msg["cond_indep_stack"])


def _is_latent(msg: dict[str, Any]) -> bool:
    return not (is_subsample(msg) or msg["done"] or msg["is_observed"] or msg["value"] is not None)


def _start(fn: Any) -> Tensor:
    """Draws of a prior, or, of an energy, of its base, which costs next to nothing."""
    found = energy_distribution_of(fn)
    drawn: Tensor
    if found is None or found.base is None:
        drawn = fn.sample()
    else:
        drawn = found.base.expand(found.batch_shape).sample()
    return drawn


def _scale_of(msg: dict[str, Any], plate: DataPlate) -> float:
    taken = next(frame.size for frame in msg["cond_indep_stack"] if frame.name == plate.name)
    return plate.size / int(taken)


def _site_of(plate: DataPlate, name: str) -> SiteLayout:
    if name not in plate.sites:
        raise BatchingError(
            f'MonteCarloEM: got a new latent site "{name}", expected {list(plate.sites)}, as in the first step. Use a '
            "model with a fixed set of sites."
        )
    return plate.sites[name]
