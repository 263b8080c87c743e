"""Named arrays of variables, and the elements of them that factors are wired to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.concrete import concrete, to_numpy
from pyro_ebm._core.errors import GraphError
from pyro_ebm._core.supports import same_support, state_range, strip_independent
from pyro_ebm._core.validation import validation_enabled


@dataclass(frozen=True, eq=False)
class Variable:
    """A named array of variables of a `FactorGraph`; indexing it wires factors to its elements.

    Elements are numbered in row-major order. `x[edges]` with an index tensor `(F, r)` of such numbers makes F scopes of
    r elements each, `x[numbers]` with `(F,)` makes F scopes of one, and so do NumPy arrays and lists of integers;
    anything else is NumPy's indexing: `x[:, :-1]` is one element for each scope, in row-major order.

    Attributes:
        name: the name.
        shape: the shape of the array.
        support: where it lives, with `event_dim == len(shape)`.
    """

    name: str
    shape: Size
    support: Constraint

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return self.shape.numel()

    @property
    def num_states(self) -> int | None:
        """How many values an element has; `None` where it is continuous."""
        found = state_range(self.support)
        return None if found is None else found[2]

    def states(self, value: Tensor) -> Tensor:
        """The values as numbers from 0 to `num_states - 1`, `(...)` to `(...)`.

        Raises:
            GraphError: if one is not a value of this variable.
        """
        low, step, count = self._range()
        if value.is_floating_point() and self._has_labels:
            raise GraphError(
                f'variable "{self.name}": got values of dtype {value.dtype}, expected integers: they are labels. '
                "Use value.long()."
            )
        state = ((value - low) / step).to(torch.long) if step != 1 else value.to(torch.long) - low
        if validation_enabled() and value.numel():
            bad = (state < 0) | (state >= count) | (low + step * state != value)
            if bool(bad.any()):
                raise GraphError(
                    f'variable "{self.name}": got the value {value[bad][0].item()}, expected one of its {count} '
                    f"from {low} to {low + step * (count - 1)}{' in steps of 2' if step == 2 else ''}."
                )
        return state

    def values(self, states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The values of state numbers, `(...)` to `(...)`: integers for labels, floats for spins and booleans."""
        low, step, _ = self._range()
        if self._has_labels:
            return states + low if low else states
        return states.to(dtype or torch.get_default_dtype()) * step + low

    @property
    def _has_labels(self) -> bool:
        return isinstance(strip_independent(self.support), constraints.integer_interval)

    def _range(self) -> tuple[int, int, int]:
        found = state_range(self.support)
        if found is None:
            raise GraphError(
                f'variable "{self.name}": got {self.support}, which has no finite number of states, expected a finite '
                "support: num_states=..., spin, constraints.boolean or an integer interval."
            )
        return found

    def same_as(self, other: Variable) -> bool:
        """Whether the other has the same name, shape and support."""
        return self.name == other.name and self.shape == other.shape and same_support(self.support, other.support)

    def __getitem__(self, index: Any) -> Elements:
        """Scopes of elements: see the class."""
        if strip_independent(self.support).event_dim:
            raise GraphError(
                f'variable "{self.name}": got an index, expected the variable as a whole: elements of '
                f"{self.support} depend on one another."
            )
        if isinstance(index, (list, np.ndarray)):
            index = self._tensor(index)
        if isinstance(index, Tensor) and index.dtype != torch.bool:
            return Elements(self, self._scopes(index))
        numbers = torch.arange(self.numel).reshape(self.shape)
        try:
            chosen = numbers[index]
        except (IndexError, TypeError) as error:
            raise GraphError(
                f'variable "{self.name}" of shape {tuple(self.shape)}: got the index {index!r}: {error}.'
            ) from None
        return Elements(self, concrete(chosen.reshape(-1, 1)))

    def _tensor(self, index: list[Any] | np.ndarray) -> Tensor:
        try:
            return torch.as_tensor(np.asarray(index))
        except (TypeError, ValueError) as error:
            raise GraphError(
                f'variable "{self.name}": got the index {index!r}, expected integers or booleans in rows of one length:'
                f" {error}."
            ) from None

    def _scopes(self, index: Tensor) -> Tensor:
        if index.is_floating_point() or index.dim() not in (1, 2) or 0 in index.shape:
            raise GraphError(
                f'variable "{self.name}": got an index of dtype {index.dtype} and shape {tuple(index.shape)}, expected '
                "integers (F, r): F scopes of r elements by number, in row-major order, neither of them zero."
            )
        index = concrete(index.long())
        numbers = to_numpy(index)
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= self.numel:
            raise GraphError(
                f'variable "{self.name}": got element {low if low < 0 else high} in an index, expected numbers from 0 '
                f"to {self.numel - 1}."
            )
        return index.reshape(len(index), -1)

    def __repr__(self) -> str:
        """Name, shape and support."""
        kind = f"num_states={self.num_states}" if self.num_states else f"support={self.support}"
        return f'Variable("{self.name}", {kind}, shape={tuple(self.shape)})'


def first_elements(variables: Mapping[str, Variable]) -> dict[str, int]:
    """The number of each variable's first element, where the elements of all are numbered side by side."""
    counts = [variable.numel for variable in variables.values()]
    return dict(zip(variables, accumulate(counts, initial=0), strict=False))


@dataclass(frozen=True, eq=False)
class Elements:
    """Scopes of elements of a variable.

    Attributes:
        variable: the variable.
        index: element numbers, `(F, r)`.
    """

    variable: Variable
    index: Tensor
