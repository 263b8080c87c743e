"""A network as a tilt of what data suggest."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.supports import is_everywhere
from pyro_ebm.distributions.energy_distribution import EnergyDistribution
from pyro_ebm.distributions.fitted_base import fitted_base
from pyro_ebm.distributions.normalizers import Normalizer
from pyro_ebm.energies import NeuralEnergy, StandardizedEnergy
from pyro_ebm.energies.standardized import spread_of

# Networks see real values of about this norm, but of no less than unit standard deviation. In two dims, values of unit
# standard deviation take smooth activations four times as long: eight Gaussians on a ring stay a ring for 3000 steps.
_INPUT_NORM = 7.0


def tilted(
    network: nn.Module,
    data: Tensor,
    *,
    support: Constraint = constraints.real,
    log_normalizer: Normalizer | None = None,
) -> EnergyDistribution:
    """A density to be learned, `p(x) ∝ base(x) exp(-net((x - m) / s))`, which starts at a base fitted to data.

    The base is `fitted_base(data)`. The network sees data centred and, over real numbers, scaled. Its last linear layer
    is set to zero, if the network's output is then constant: the density starts at its base, where log Z is known.

    Args:
        network: maps `(N, *event)` to `(N,)` or `(N, 1)`; the energy shares it.
        data: `(N, *event)`.
        support: where events live.
        log_normalizer: supplies log Z.

    Raises:
        EnergySupportError: if there is no base for the support.

    >>> net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    >>> tilted(net, torch.randn(100, 2))
    EnergyDistribution(StandardizedEnergy, base=MultivariateNormal, batch_shape=(), event_shape=(2,), ...)
    """
    like = like_of(network)
    data = data.to(like)
    base = fitted_base(data, support)
    location, scale = spread_of(data)
    if is_everywhere(support):
        scale = scale / max(1.0, _INPUT_NORM / math.sqrt(data[0].numel()))
    else:
        scale = scale.square().mean().sqrt()
    energy = NeuralEnergy(_OneOutput(network), data.shape[1:], support=support)
    standardized = StandardizedEnergy(energy, location, scale)
    zero_last_layer(network, standardized, data[:2])
    return EnergyDistribution(standardized, base, log_normalizer=log_normalizer)


@torch.no_grad()
def zero_last_layer(network: nn.Module, energy: nn.Module, data: Tensor) -> None:
    """Set a network's last linear or convolutional layer to zero, if the energy is then constant over data."""
    layers = [each for each in network.modules() if isinstance(each, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    if not layers:
        return
    last = layers[-1]
    kept = {name: value.clone() for name, value in last.named_parameters()}
    for parameter in last.parameters():
        parameter.zero_()
    was_training = network.training
    network.eval()
    values = energy(data)
    network.train(was_training)
    if not bool((values == values[0]).all()):
        for name, parameter in last.named_parameters():
            parameter.copy_(kept[name])


class _OneOutput(nn.Module):
    """A network whose output `(N, 1)` becomes `(N,)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """`(N, *event)` to `(N,)`."""
        output: Tensor = self.network(x)
        return output.squeeze(-1) if output.dim() == 2 and output.shape[-1] == 1 else output
