"""An energy of which some variables are given, applied to some of the scopes of a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Size, Tensor
from torch.distributions.constraints import Constraint

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.shapes import broadcast
from pyro_ebm._core.supports import strip_independent
from pyro_ebm.energies import BilinearEnergy, Energy


@dataclass(frozen=True, eq=False)
class Given:
    """What is known of one argument of an energy.

    Attributes:
        values: for each of its elements the known values, `(*batch, R)`, or nothing where it is free; for a whole
            variable one entry, `(*batch, *shape)`, or nothing.
        whole: whether it is a whole variable.
        stacked: whether its elements make a vector.
        free_elements: of a whole variable that is known in part, which elements are not; `values` has the others.
    """

    values: tuple[Tensor | None, ...]
    whole: bool = False
    stacked: bool = False
    free_elements: Tensor | None = None

    @property
    def num_free(self) -> int:
        """How many variables of the partial energy it takes."""
        return sum(value is None for value in self.values) + (self.free_elements is not None)


class PartialEnergy(Energy):
    """An energy with some of its variables given, and for some rows of its group: `E'(y) = E(y, given)[rows]`.

    Args:
        energy: the energy.
        given: what is known of each of its variables.
        grouped: whether its last batch dim is that of the group's factors.
        rows: which factors of the group, `(R,)`; nothing for all.
        num_factors: how many the group has.
    """

    def __init__(
        self, energy: Energy, given: Sequence[Given], *, grouped: bool, rows: Tensor | None, num_factors: int
    ) -> None:
        shapes: list[Size] = []
        supports: list[Constraint] = []
        batches = [_restricted(energy.batch_shape, rows) if grouped else energy.batch_shape]
        for each, shape, support in zip(given, energy.event_shapes, energy.supports, strict=True):
            for value in each.values:
                if value is None:
                    shapes.append(shape if each.whole else Size())
                    supports.append(support if each.whole else strip_independent(support))
                else:
                    lead = value.shape[: value.dim() - len(shape)] if each.whole else value.shape
                    batches.append(Size([*lead, 1]) if each.whole and grouped else Size(lead))
            if each.free_elements is not None:
                shapes.append(each.free_elements.shape)
                supports.append(strip_independent(support))
        batch_shape = broadcast(batches, "PartialEnergy")
        super().__init__(shapes, support=supports, batch_shape=batch_shape)
        # Without free elements nothing tells the group's factors apart any more: they are added up here.
        self._adds_up = grouped and not any(value is None for each in given if not each.whole for value in each.values)
        if self._adds_up:
            self.batch_shape = Size(batch_shape[:-1])
        self.energy = energy
        self._given, self._grouped, self._num_factors = tuple(given), grouped, num_factors
        self.register_buffer("_rows", rows, persistent=False)
        for number, each in enumerate(given):
            for column, value in enumerate(each.values):
                if value is not None and value.is_floating_point():
                    value = value.to(torch.promote_types(value.dtype, like_of(energy).dtype))
                self.register_buffer(f"_value_{number}_{column}", value, persistent=False)

    def forward(self, *values: Tensor) -> Tensor:
        """The energy at the free variables, `(*sample, *batch)`."""
        free = iter(values)
        rows = self._rows if isinstance(self._rows, Tensor) else None
        depends = rows is not None and self.energy.batch_shape[-1:] not in (Size(), Size([1]))
        arguments = []
        for number, each in enumerate(self._given):
            known = [getattr(self, f"_value_{number}_{column}") for column in range(len(each.values))]
            if each.whole:
                arguments.append(self._whole(each, known[0], len(self.energy.event_shapes[number]), free))
                continue
            columns = [next(free) if value is None else value for value in known]
            if depends and rows is not None:
                columns = [_spread(column, rows, self._num_factors) for column in columns]
            arguments.append(torch.stack(torch.broadcast_tensors(*columns), -1) if each.stacked else columns[0])
        energy: Tensor = self.energy(*arguments)
        if depends and rows is not None:
            energy = energy[..., rows]
        if not self._adds_up:
            return energy
        count = self._num_factors if rows is None else len(rows)
        return energy.expand(*energy.shape[:-1], count).sum(-1)

    def _whole(self, given: Given, known: Tensor | None, dims: int, free: Iterator[Tensor]) -> Tensor:
        if known is None:
            value = next(free)
            return value.unsqueeze(value.dim() - dims) if self._adds_up else value
        lead = known.dim() - dims
        value = known.unsqueeze(lead) if self._grouped else known
        if given.free_elements is None:
            return value
        part = next(free)
        part = part.unsqueeze(-2) if self._adds_up else part
        flat = value.flatten(value.dim() - dims) if dims else value.unsqueeze(-1)
        shape = broadcast([Size(part.shape[:-1]), Size(flat.shape[:-1])], "PartialEnergy")
        index = given.free_elements.expand(*shape, -1)
        dtype = torch.promote_types(part.dtype, flat.dtype)
        merged = flat.to(dtype).expand(*shape, -1).scatter(-1, index, part.to(dtype).expand(*shape, -1))
        return merged.reshape((*shape, *value.shape[value.dim() - dims :]))


class FieldOfOther(Energy):
    """A bilinear form with one of its vectors given: the field `E(v_i) = -v_i Σ_j W_ij h_j` on the other's elements.

    Args:
        energy: the bilinear form.
        known: the given vector, `(*batch, n)` or `(*batch, m)`.
        known_first: whether it is the first of the two.
    """

    known: Tensor

    def __init__(self, energy: BilinearEnergy, known: Tensor, *, known_first: bool) -> None:
        other = energy.event_shapes[1 if known_first else 0]
        batch = broadcast([energy.batch_shape, Size(known.shape[:-1])], "FieldOfOther")
        super().__init__((), batch_shape=(*batch, *other))
        self.energy, self._known_first = energy, known_first
        self.register_buffer("known", known, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, elements)`."""
        weight = self.energy.weight
        known = self.known.to(weight)
        field = (
            (known.unsqueeze(-2) @ weight).squeeze(-2) if self._known_first else (weight @ known.unsqueeze(-1))[..., 0]
        )
        return -field * x


def _restricted(batch_shape: Size, rows: Tensor | None) -> Size:
    """The batch shape of a group's energy, when only some rows of it are used."""
    if rows is None or batch_shape[-1:] in (Size(), Size([1])):
        return batch_shape
    return Size([*batch_shape[:-1], len(rows)])


def _spread(column: Tensor, rows: Tensor, count: int) -> Tensor:
    """Values of some rows, `(..., R)` or `(..., 1)`, in their places among all, `(..., F)`; the others repeat one."""
    column = column.expand(*column.shape[:-1], len(rows))
    return column[..., :1].expand(*column.shape[:-1], count).index_copy(-1, rows, column)
