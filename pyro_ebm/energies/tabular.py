"""A table as an energy over discrete variables."""

from typing import cast

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.concrete import is_transformed
from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError
from pyro_ebm._core.shapes import broadcast
from pyro_ebm._core.supports import state_range
from pyro_ebm._core.validation import validation_enabled
from pyro_ebm.energies.energy import Energy


class TableEnergy(Energy):
    """A table of energies over `arity` discrete variables: `E(x_1, ..., x_r) = table[x_1, ..., x_r]`.

    For log-potentials give their negatives; an infinite energy forbids a state.

    Args:
        table: `(*batch, K_1, ..., K_r)`; a `Parameter` is learned.
        arity: the number r of variables; by default all dims are variables, and none is batch.
        support: where each variable lives: one support for all or a list, each with as many values as its dim, in
            increasing order; by default the integers `0, ..., K - 1`.

    Raises:
        EnergyShapeError: if there are fewer dims than variables, or none.
        EnergySupportError: if a support has another number of values than its dim.
        ValueError: if the table has NaN or `-inf` in it.

    >>> likes_equal = TableEnergy(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    >>> likes_equal(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    tensor([0., 1., 0.])
    """

    table: Tensor

    def __init__(
        self, table: Tensor, arity: int | None = None, *, support: Constraint | list[Constraint] | None = None
    ) -> None:
        arity = table.dim() if arity is None else arity
        if not 1 <= arity <= table.dim():
            raise EnergyShapeError(
                f"TableEnergy: got a table of shape {tuple(table.shape)} for {arity} variables, expected at least one "
                "variable and a dim for each. Put batch dims before those of the variables."
            )
        if not table.is_floating_point():
            raise TypeError(f"TableEnergy: got a table of dtype {table.dtype}, expected floats. Use table.double().")
        if validation_enabled() and bool((table.isnan() | (table == -torch.inf)).any()):
            raise ValueError("TableEnergy: got NaN or -inf in the table, expected energies that are finite or +inf.")
        sizes = table.shape[table.dim() - arity :]
        if support is None:
            supports: list[Constraint] = [constraints.integer_interval(0, size - 1) for size in sizes]
        else:
            supports = [support] * arity if isinstance(support, Constraint) else list(support)
        super().__init__([()] * arity, support=supports, batch_shape=table.shape[: table.dim() - arity])
        ranges = [state_range(each) for each in self.supports]
        for number, (size, found) in enumerate(zip(sizes, ranges, strict=True)):
            if found is None or found[2] != size:
                has = "no finite number of" if found is None else found[2]
                raise EnergySupportError(
                    f"TableEnergy: got support {self.supports[number]} with {has} values for variable {number}, "
                    f"expected {size}, the size of its dim."
                )
        self._lows = [found[0] for found in ranges if found is not None]
        self._steps = [found[1] for found in ranges if found is not None]
        self._hold(table=table)

    def forward(self, *values: Tensor) -> Tensor:
        """Look up values, each `(*sample, *batch)`, to `(*sample, *batch)`.

        Raises:
            ValueError: if a value is not one of its variable's, where torch.distributions checks values.
        """
        sizes = self.table.shape[self.table.dim() - self.num_variables :]
        lead = broadcast([self.batch_shape, *(value.shape for value in values)], "TableEnergy")
        flat: Tensor | None = None
        for number, (value, low, step, size) in enumerate(zip(values, self._lows, self._steps, sizes, strict=True)):
            state = (value if low == 0 else value - low).long()
            state = state if step == 1 else torch.div(state, step, rounding_mode="floor")
            if validation_enabled() and not is_transformed(value):
                bad = (state < 0) | (state >= size) | (low + step * state != value)
                if bool(bad.any()):
                    raise ValueError(
                        f"TableEnergy: got the value {value[bad][0].item()} for variable {number}, expected one of its "
                        f"{size} from {low} to {low + step * (size - 1)}{' in steps of 2' if step == 2 else ''}."
                    )
            flat = state if flat is None else flat * size + state
        index = cast(Tensor, flat).expand(lead).unsqueeze(-1)
        entries = self.table.reshape(*self.batch_shape, -1).expand(*lead, -1)
        return entries.gather(-1, index).squeeze(-1)

    def extra_repr(self) -> str:
        """The shapes, for `repr`."""
        return f"table={tuple(self.table.shape)}, arity={self.num_variables}"
