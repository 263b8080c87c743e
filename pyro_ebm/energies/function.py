"""Any callable as an energy."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm._core.shapes import broadcast, check_energy_shape, leading_shape
from pyro_ebm.energies.energy import Energy, EventShape, Support


class FunctionEnergy(Energy):
    """A callable as an energy, over one variable or several: `E(*values) = fn(*values)`.

    The callable takes values with any leading dims, `(*sample, *batch, *event)`, and reduces their event dims. An
    `nn.Module` becomes a submodule, so that its parameters are the energy's.

    Args:
        fn: the callable; a module-level function or an `nn.Module` pickles, a lambda does not.
        event_shape: one event shape, or a list with one for each variable.
        support: one support, or a list with one for each variable.
        batch_shape: the batch shape of tensors that `fn` closes over.

    Raises:
        EnergyShapeError: at a call, if `fn` does not return `(*sample, *batch)`.
    """

    fn: Callable[..., Tensor]

    def __init__(
        self,
        fn: Callable[..., Tensor],
        event_shape: EventShape,
        *,
        support: Support = constraints.real,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(event_shape, support=support, batch_shape=batch_shape)
        self.fn = fn
        self._name = f"energy({getattr(fn, '__name__', type(fn).__name__)})"

    def forward(self, *values: Tensor) -> Tensor:
        """The energy at values `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        if len(values) != self.num_variables:
            raise TypeError(f"{self._name}: got {len(values)} values, expected {self.num_variables}.")
        leads = [leading_shape(v, s, self._name) for v, s in zip(values, self.event_shapes, strict=True)]
        expected = broadcast([self.batch_shape, *leads], self._name)
        return check_energy_shape(self.fn(*values), expected, self._name)


def energy(
    fn: Callable[..., Tensor] | nn.Module,
    event_shape: EventShape,
    *,
    support: Support = constraints.real,
    batch_shape: Sequence[int] = (),
) -> FunctionEnergy:
    """Make an energy of a callable: see `FunctionEnergy`.

    >>> import torch
    >>> spring = energy(lambda x, y: (x - y).square().sum(-1), event_shape=[(3,), (3,)])
    >>> spring(torch.zeros(5, 3), torch.ones(3))
    tensor([3., 3., 3., 3., 3.])
    """
    return FunctionEnergy(fn, event_shape, support=support, batch_shape=batch_shape)
