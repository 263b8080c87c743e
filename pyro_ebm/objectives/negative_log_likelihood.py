"""The negative log-likelihood: maximum likelihood."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_ebm._core.errors import UnnormalizedError
from pyro_ebm._core.protocols import Density, HasLogPartition, HasReport
from pyro_ebm.objectives.data import log_density
from pyro_ebm.objectives.objective import Objective, Report, Trained


class NegativeLogLikelihood(Objective):
    """The negative log-likelihood `loss = E_data[-log p̃(x)] + log Z` nats.

    Log Z is the distribution's own, of whatever normaliser it was given (`PersistentWalkers`, `Exact`), or else the
    exact one of its energy: of graphs of small treewidth, chains, trees, Gaussians. No other objective is as accurate.

    With walkers, the report has log Z with its standard error, the share of the walkers that count, and the energy gap,
    `E_data[log p̃] - E_walkers[log p̃]`, which nears zero for a density that has learned.

    Raises:
        UnnormalizedError: at a call, if there is neither.
        TreewidthError: at a call, if that of the graph is too large.

    References:
        Fisher 1922, On the mathematical foundations of theoretical statistics.

    >>> from pyro_ebm import EnergyDistribution, Ising
    >>> model = Ising((3, 3), torch.nn.Parameter(torch.tensor(0.0)))
    >>> loss, _ = NegativeLogLikelihood()(EnergyDistribution(model), torch.ones(20, 3, 3))
    >>> loss  # 9 log 2
    tensor(6.2383, grad_fn=<SubBackward0>)
    """

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = self._reference(distribution)
        if getattr(density, "is_normalized", False):
            loss = -density.log_prob(data).mean()
            return loss, _told_by_walkers(density, loss.detach())
        at_data = log_density(density, data, "data")
        log_partition = _log_partition(density, data)
        loss = log_partition.mean() - at_data.mean()
        return loss, {"log_partition": log_partition.mean()}


def _told_by_walkers(density: Density, loss: Tensor) -> Report:
    """What a normaliser tells of itself, if it does: means over the batch."""
    normalizer = getattr(density, "log_normalizer", None)
    if not isinstance(normalizer, HasReport):
        return {}
    found = {name: value.mean() for name, value in normalizer.report().items()}
    if "log_normalizer" not in found:  # plain chains know no log Z
        return found
    log_partition = found.pop("log_normalizer")
    return {
        "log_partition": log_partition,
        "log_partition_error": found.pop("log_normalizer_error"),
        "energy_gap": log_partition - loss - found.pop("log_density"),
        **found,
    }


def _log_partition(density: Density, data: Tensor) -> Tensor:
    """What is missing in `log_density`."""
    if not hasattr(density, "unnormalized_log_prob"):  # any other distribution has a normalised log_prob
        return torch.zeros(density.batch_shape, device=data.device)
    energy = getattr(density, "energy", None)
    if getattr(density, "base", None) is not None or not isinstance(energy, HasLogPartition):
        raise UnnormalizedError(
            f"NegativeLogLikelihood: got {density!r}, which has no exact log Z, expected an energy with "
            "log_partition(), and without a base, or a normaliser: EnergyDistribution(..., "
            "log_normalizer=PersistentWalkers()). Or use an objective that needs no log Z, such as NoiseContrastive."
        )
    return energy.log_partition().expand(density.batch_shape)
