"""`Energy`, and the algebra of sums and multiples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.shapes import broadcast, check_energy_shape, leading_shape
from pyro_ebm._core.supports import join_supports, with_event_dim

EventShape = Sequence[int] | Sequence[Sequence[int]]
Support = Constraint | Sequence[Constraint]


class Energy(nn.Module, ABC):
    """A function `E(x)` that defines the density `p(x) ∝ exp(-E(x))`.

    A subclass defines `forward(*values)`, which maps values `(*sample, *batch, *event)` to energies
    `(*sample, *batch)`: it reduces its event dims and no others. Parameters and covariates with batch dims
    `(*batch, ...)` are bound at construction, as in `dist.Normal(loc(x), 1.0)`.

    Energies form an algebra over one (or the same several) variables:
    `e1 + e2` is the product of the densities, `e1 - e2` their quotient, `c * e` the inverse temperature `c`
    (a number, or a tensor `(*batch,)`), `sum([...])` a sum of many; `mixture` is the OR.

    Args:
        event_shape: the shape of one event; for an energy over several variables, a list with a shape for each.
        support: the set where each event lives, as torch's constraints; for several variables, one for all or a list;
            an empty list for an energy over none, a constant.
        batch_shape: the batch shape of the parameters.

    Attributes:
        event_shapes: one event shape for each variable.
        supports: one support for each variable, with `event_dim == len(event_shape)`.
        batch_shape: the batch shape.

    Raises:
        EnergySupportError: if a support has more dims than its event.

    >>> import torch
    >>> class Harmonic(Energy):
    ...     def forward(self, x):
    ...         return 0.5 * x.square().sum(-1)
    >>> e = Harmonic(event_shape=(3,))
    >>> (2 * e + e)(torch.ones(5, 3))
    tensor([4.5000, 4.5000, 4.5000, 4.5000, 4.5000])
    """

    event_shapes: tuple[Size, ...]
    supports: tuple[Constraint, ...]
    batch_shape: Size

    def __init__(
        self,
        event_shape: EventShape,
        *,
        support: Support = constraints.real,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not isinstance(support, Constraint) and not support:  # no variables: a constant
            self.event_shapes, self.supports, self.batch_shape = (), (), Size(batch_shape)
            return
        several = len(event_shape) > 0 and not all(isinstance(size, int) for size in event_shape)
        shapes = cast(Sequence[Sequence[int]], event_shape if several else [event_shape])
        self.event_shapes = tuple(Size(shape) for shape in shapes)
        given = [support] * len(self.event_shapes) if isinstance(support, Constraint) else list(support)
        if len(given) != len(self.event_shapes):
            raise EnergyShapeError(
                f"{type(self).__name__}: got {len(given)} supports, expected one for each of the "
                f"{len(self.event_shapes)} variables."
            )
        self.supports = tuple(
            with_event_dim(each, len(shape), type(self).__name__)
            for each, shape in zip(given, self.event_shapes, strict=True)
        )
        self.batch_shape = Size(batch_shape)

    def _hold(self, **tensors: Tensor) -> None:
        """Make tensors attributes that move, save and, if they are `Parameter`s, learn with the energy."""
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    @abstractmethod
    def forward(self, *values: Any, **_: Any) -> Tensor:  # Any: a subclass names its own variables
        """Map values `(*sample, *batch, *event)`, one for each variable, to energies `(*sample, *batch)`."""

    @property
    def num_variables(self) -> int:
        """How many variables the energy is over."""
        return len(self.event_shapes)

    @property
    def event_shape(self) -> Size:
        """The event shape of an energy over one variable.

        Raises:
            EnergyShapeError: for an energy over several variables, which has `event_shapes`.
        """
        self._require_one_variable("event_shape")
        return self.event_shapes[0]

    @property
    def support(self) -> Constraint:
        """The support of an energy over one variable.

        Raises:
            EnergyShapeError: for an energy over several variables, which has `supports`.
        """
        self._require_one_variable("support")
        return self.supports[0]

    def _require_one_variable(self, name: str) -> None:
        if self.num_variables != 1:
            raise EnergyShapeError(
                f"{type(self).__name__}.{name}: got an energy over {self.num_variables} variables, expected one. "
                f"Use .{name}s, which has one entry for each variable."
            )

    def __add__(self, other: object) -> Energy:
        if isinstance(other, Energy):
            return other._plus(self)
        if isinstance(other, (int, float)) and other == 0:  # the start of the builtin sum
            return self
        return NotImplemented

    __radd__ = __add__

    def _plus(self, other: Energy) -> Energy:
        """The sum with an energy to the left of this one."""
        return SumEnergy([other, self])

    def __sub__(self, other: object) -> Energy:
        return self + -other if isinstance(other, Energy) else NotImplemented

    def __neg__(self) -> Energy:
        return ScaledEnergy(-1.0, self)

    def __mul__(self, weight: object) -> Energy:
        return ScaledEnergy(weight, self) if isinstance(weight, (int, float, Tensor)) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, temperature: object) -> Energy:
        if isinstance(temperature, nn.Parameter):
            raise TypeError(
                "Energy / Parameter: got a temperature to be learned, expected a number or a tensor. Learn the inverse "
                "temperature: weight * energy, with a Parameter as weight."
            )
        return self * (1.0 / temperature) if isinstance(temperature, (int, float, Tensor)) else NotImplemented


def require_same_variables(energies: Sequence[Energy], what: str) -> None:
    """Check that energies are over variables of the same event shapes.

    Raises:
        EnergyShapeError: if they are not, or if there are none.
    """
    if not energies:
        raise EnergyShapeError(f"{what}: got no energies, expected at least one.")
    for other in energies:
        if not isinstance(other, Energy):
            raise TypeError(f"{what}: got {type(other).__name__}, expected an Energy; wrap it with energy(...).")
        if other.event_shapes != energies[0].event_shapes:
            shapes = [tuple(map(tuple, e.event_shapes)) for e in (energies[0], other)]
            raise EnergyShapeError(
                f"{what}: got event shapes {shapes[0]} and {shapes[1]}, expected the same. "
                "Energies over different variables compose as factors of one model, not as a sum over one tensor."
            )


class SumEnergy(Energy):
    """The sum `E(x) = Σ_k E_k(x)`: the product of the densities. Nested sums are flattened.

    Args:
        terms: energies over the same variables, with one support.

    Raises:
        EnergyShapeError: if event shapes differ, or batch shapes do not broadcast.
        EnergySupportError: if supports differ.
    """

    terms: nn.ModuleList

    def __init__(self, terms: Sequence[Energy]) -> None:
        require_same_variables(terms, "SumEnergy")
        flat: list[Energy] = []
        for term in terms:
            flat += [cast(Energy, t) for t in term.terms] if isinstance(term, SumEnergy) else [term]
        super().__init__(
            flat[0].event_shapes,
            support=[join_supports(each, "SumEnergy") for each in zip(*(t.supports for t in flat), strict=True)],
            batch_shape=broadcast([t.batch_shape for t in flat], "SumEnergy"),
        )
        self.terms = nn.ModuleList(flat)

    def forward(self, *values: Tensor) -> Tensor:
        """Sum the terms at `(*sample, *batch, *event)` to `(*sample, *batch)`."""
        leads = [leading_shape(v, s, "SumEnergy") for v, s in zip(values, self.event_shapes, strict=True)]
        total: Tensor | None = None
        for term in self.terms:
            expected = broadcast([cast(Energy, term).batch_shape, *leads], "SumEnergy")
            each = check_energy_shape(term(*values), expected, f"SumEnergy, term {type(term).__name__}")
            total = each if total is None else total + each
        return cast(Tensor, total)


class ScaledEnergy(Energy):
    """A multiple `E(x) = c E_1(x)`: the density at inverse temperature `c`.

    Args:
        weight: a number, or a tensor `(*batch,)`; a `Parameter` is learned.
        energy: the energy.

    Raises:
        EnergyShapeError: if the weight's shape does not broadcast with the energy's batch shape.
    """

    weight: float | Tensor

    def __init__(self, weight: float | Tensor, energy: Energy) -> None:
        shape = weight.shape if isinstance(weight, Tensor) else Size()
        super().__init__(
            energy.event_shapes,
            support=energy.supports,
            batch_shape=broadcast([shape, energy.batch_shape], "ScaledEnergy"),
        )
        if isinstance(weight, Tensor):
            self._hold(weight=weight)
        else:
            self.weight = weight
        self.energy = energy

    def forward(self, *values: Tensor) -> Tensor:
        """The scaled energy at `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        return self.multiply(self.weight, self.energy(*values))

    @staticmethod
    def multiply(weight: float | Tensor, energy: Tensor) -> Tensor:
        """The product, but that what is forbidden stays so at any weight that is not negative.

        Infinity times zero is not a number, and the gradient of the weight would be infinite.
        """
        forbidden = (energy == torch.inf) & (torch.as_tensor(weight) >= 0)
        return torch.where(forbidden, torch.inf, weight * energy.masked_fill(forbidden, 0))
