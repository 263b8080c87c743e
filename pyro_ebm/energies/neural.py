"""A network as an energy."""

from collections.abc import Sequence

from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.shapes import broadcast, check_energy_shape, leading_shape
from pyro_ebm.energies.energy import Energy


class NeuralEnergy(Energy):
    """A network as an energy over one variable: `E(x) = net(x)`, or `E(x; c) = net(x, c)` with covariates.

    The network sees one leading dim, as torch's layers expect, whatever sample and batch dims the value has: it maps
    `(N, *event)` (and covariates `(N, *context_event)`) to `(N,)`. End a network with one output by `nn.Flatten(0)`.

    Args:
        net: the network.
        event_shape: the shape of one event.
        support: the set where events live.
        context: covariates `(*batch, *context_event)`, bound here; their batch shape becomes the energy's.
        context_dim: how many trailing dims of `context` are its event.

    Raises:
        EnergyShapeError: at a call, if the network does not return `(N,)`.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1), nn.Flatten(0))
    >>> NeuralEnergy(net, event_shape=(2,))(torch.zeros(7, 5, 2)).shape
    torch.Size([7, 5])
    """

    context: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        support: Constraint = constraints.real,
        context: Tensor | None = None,
        context_dim: int = 1,
    ) -> None:
        batch_shape = () if context is None else context.shape[: context.dim() - context_dim]
        super().__init__(event_shape, support=support, batch_shape=batch_shape)
        if self.num_variables != 1:
            raise EnergyShapeError(
                f"NeuralEnergy: got {self.num_variables} event shapes, expected one. "
                "For a network over several variables use energy(net, event_shape=[...])."
            )
        self.net = net
        self.register_buffer("context", context)
        self.context_dim = context_dim

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        event_shape = self.event_shapes[0]
        lead = leading_shape(x, event_shape, "NeuralEnergy")
        if self.context is None:
            output: Tensor = self.net(x.reshape(-1, *event_shape))
        else:
            context_event = self.context.shape[self.context.dim() - self.context_dim :]
            lead = broadcast([lead, self.batch_shape], "NeuralEnergy")
            output = self.net(
                x.expand(*lead, *event_shape).reshape(-1, *event_shape),
                self.context.expand(*lead, *context_event).reshape(-1, *context_event),
            )
        check_energy_shape(output, Size([lead.numel()]), "NeuralEnergy")
        return output.reshape(lead)
