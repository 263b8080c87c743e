"""The Gaussian part of a graph: quadratic factors over real variables, answered by a banded Cholesky factor.

`E(x) = ½ xᵀ Λ x - bᵀ x + c` has `log Z = ½ bᵀ Λ⁻¹ b + (N/2) log 2π - ½ log det Λ - c`. In the order of reverse
Cuthill-McKee Λ is banded; in blocks as wide as the band it is block tridiagonal, and its Cholesky factor is found block
by block, at a cost of `N w²` for bandwidth w. Marginal variances come from the blocks of the inverse on the band alone.

References:
    Rue and Held 2005, Gaussian Markov Random Fields, sections 2.3 and 2.4.
    Takahashi, Fagan and Chen 1973, Formation of a sparse bus impedance matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import networkx as nx
import numpy as np
import torch
from networkx.utils import reverse_cuthill_mckee_ordering
from torch import Generator, Size, Tensor

from pyro_ebm._core.concrete import to_numpy
from pyro_ebm._core.shapes import broadcast
from pyro_ebm._core.validation import validation_enabled
from pyro_ebm.energies import DistributionEnergy
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.localize import localized
from pyro_ebm.graphs.quadratic_forms import quadratic_form
from pyro_ebm.graphs.variable import Variable, first_elements


@dataclass(frozen=True, eq=False)
class BandedGaussian:
    """A Gaussian with a banded precision, in an order of its own.

    Attributes:
        order: which element each place has, `(N,)`; `N` is padded to whole blocks by independent standard normals.
        num_elements: without the padding.
        linear: b, `(*batch, blocks, w)`.
        diagonal: the Cholesky factors of the diagonal blocks, `(blocks, *batch, w, w)`.
        below: the blocks of the factor below them, `(blocks - 1, *batch, w, w)`.
        constant: c, `(*batch,)`.
    """

    order: Tensor
    num_elements: int
    linear: Tensor
    diagonal: tuple[Tensor, ...]
    below: tuple[Tensor, ...]
    constant: Tensor

    def log_partition(self) -> Tensor:
        """Log Z in nats, `(*batch,)`."""
        half = self._solve_lower(self.linear)
        squares = half.square().sum((-2, -1))
        return 0.5 * squares + 0.5 * self.num_elements * math.log(2 * math.pi) - self._half_log_det() - self.constant

    def entropy(self) -> Tensor:
        """The entropy in nats, `(*batch,)`."""
        return 0.5 * self.num_elements * (1 + math.log(2 * math.pi)) - self._half_log_det()

    def mean(self) -> Tensor:
        """The mean, which is the mode, `(*batch, N)`."""
        return self._in_place(self._solve_upper(self._solve_lower(self.linear)))

    def sample(self, sample_shape: Size, batch_shape: Size, generator: Generator | None = None) -> Tensor:
        """Exact draws for a batch that this one broadcasts to, `(*sample, *batch, N)`."""
        shape = (*sample_shape, *batch_shape, *self.linear.shape[-2:])
        noise = torch.randn(shape, dtype=self.linear.dtype, device=self.linear.device, generator=generator)
        return self.mean() + self._in_place(self._solve_upper(noise))

    def variance(self) -> Tensor:
        """The marginal variances, `(*batch, N)`."""
        blocks: list[Tensor] = []  # Σ_k = C_k⁻ᵀ (1 + B_kᵀ Σ_{k+1} B_k) C_k⁻¹, from the last block up
        covariance: Tensor | None = None
        for k in reversed(range(len(self.diagonal))):
            inverse = torch.linalg.solve_triangular(
                self.diagonal[k], torch.eye(self.diagonal[k].shape[-1]).to(self.diagonal[k]), upper=False
            )
            new = inverse.mT @ inverse
            if covariance is not None:
                new = new + inverse.mT @ (self.below[k].mT @ covariance @ self.below[k]) @ inverse
            covariance = new
            blocks.append(covariance.diagonal(dim1=-2, dim2=-1))
        return self._in_place(torch.stack(blocks[::-1], -2))

    def _half_log_det(self) -> Tensor:
        return torch.stack([factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) for factor in self.diagonal]).sum(0)

    def _solve_lower(self, right: Tensor) -> Tensor:
        """`L⁻¹ v`, `(..., blocks, w)` to the same."""
        solved: list[Tensor] = []
        for k, factor in enumerate(self.diagonal):
            part = right[..., k, :].unsqueeze(-1)
            if k:
                part = part - self.below[k - 1] @ solved[-1]
            solved.append(torch.linalg.solve_triangular(factor, part, upper=False))
        return torch.stack(solved, -3).squeeze(-1)

    def _solve_upper(self, right: Tensor) -> Tensor:
        """`L⁻ᵀ v`, `(..., blocks, w)` to the same."""
        solved: list[Tensor] = []
        for k in reversed(range(len(self.diagonal))):
            part = right[..., k, :].unsqueeze(-1)
            if solved:
                part = part - self.below[k].mT @ solved[-1]
            solved.append(torch.linalg.solve_triangular(self.diagonal[k].mT, part, upper=True))
        return torch.stack(solved[::-1], -3).squeeze(-1)

    def _in_place(self, blocks: Tensor) -> Tensor:
        """`(..., blocks, w)` to elements in the graph's order, `(..., N)`."""
        flat = blocks.flatten(-2)[..., : self.num_elements]
        return torch.empty_like(flat).index_copy(-1, self.order, flat)


def banded_gaussian(variables: Mapping[str, Variable], factors: Iterable[Factor]) -> BandedGaussian:
    """The Gaussian of real variables with quadratic factors.

    Raises:
        GraphError: if a factor is not quadratic.
        ValueError: if the precision is not positive definite.
    """
    offsets, count = first_elements(variables), sum(variable.numel for variable in variables.values())
    apart = [each for factor in factors for each in _apart(factor, variables)]
    forms = [quadratic_form(factor, variables, offsets) for factor in apart]
    batch = broadcast([Size(form.constant.shape) for form in forms], "FactorGraph")
    like = forms[0].constant if forms else torch.empty((), dtype=torch.float64)
    width, order = _layout(count, tuple((form.elements.shape, to_numpy(form.elements).tobytes()) for form in forms))
    place = torch.empty(count, dtype=torch.long)
    place[torch.from_numpy(order)] = torch.arange(count)
    blocks = -(-count // width)

    linear = like.new_zeros(*batch, blocks * width)
    diagonal, below = (like.new_zeros(*batch, n * width * width) for n in (blocks, max(blocks - 1, 0)))
    constant = like.new_zeros(batch)
    padding = torch.arange(count, blocks * width)
    diagonal = diagonal.index_fill(-1, _entry(padding, padding, width), 1.0)
    for form in forms:
        at = place[form.elements]
        linear = _add(linear, at.flatten(), form.linear.flatten(-2))
        row, column = at.unsqueeze(-1).expand(*at.shape, at.shape[-1]), at.unsqueeze(-2)
        column = column.expand(row.shape)
        values = form.precision.flatten(-3)
        row, column = row.flatten(), column.flatten()
        same, under = row // width == column // width, row // width == column // width + 1
        diagonal = _add(diagonal, _entry(row[same], column[same], width), values[..., same])
        below = _add(below, _entry(row[under] - width, column[under], width), values[..., under])
        constant = constant + form.constant
    return _factorised(
        torch.from_numpy(order), linear.unflatten(-1, (blocks, width)), diagonal, below, constant, width, count
    )


def _apart(factor: Factor, variables: Mapping[str, Variable]) -> list[Factor]:
    """Independent normals over a whole variable by element: as one factor they would be dense."""
    return localized(factor, variables) if isinstance(factor.energy, DistributionEnergy) else [factor]


def _entry(row: Tensor, column: Tensor, width: int) -> Tensor:
    """The number of an entry of diagonal blocks that lie one after another."""
    return (row // width) * width * width + (row % width) * width + column % width


def _add(total: Tensor, index: Tensor, values: Tensor) -> Tensor:
    values = values.expand(*total.shape[:-1], values.shape[-1]).to(total.dtype)
    return total.index_add(-1, index, values)


# Narrower blocks would be many small steps.
_NARROWEST = 32


@lru_cache(maxsize=64)
def _layout(count: int, packed: tuple[tuple[tuple[int, int], bytes], ...]) -> tuple[int, np.ndarray]:
    """How wide blocks must be, and the order of elements that makes them narrow."""
    graph = nx.Graph()
    graph.add_nodes_from(range(count))
    edges = []
    if any(2 * shape[1] > count for shape, _ in packed):  # dense, whatever the order
        return max(count, 1), np.arange(count)
    for shape, data in packed:
        scopes = np.frombuffer(data, dtype=np.int64).reshape(shape)
        for first in range(shape[1]):
            edges += [scopes[:, [first, second]] for second in range(first)]
    for pairs in edges:
        graph.add_edges_from(pairs.tolist())
    order = np.array(list(reverse_cuthill_mckee_ordering(graph)), dtype=np.int64)
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    band = max((int(np.abs(place[pairs[:, 0]] - place[pairs[:, 1]]).max()) for pairs in edges if len(pairs)), default=1)
    return min(max(band, _NARROWEST), count), order


def _factorised(
    order: Tensor, linear: Tensor, diagonal: Tensor, below: Tensor, constant: Tensor, width: int, count: int
) -> BandedGaussian:
    """The block Cholesky factor: `C_k C_kᵀ = Λ_kk - B_{k-1} B_{k-1}ᵀ`, `B_k = Λ_{k+1,k} C_k⁻ᵀ`."""
    factors: list[Tensor] = []
    lower: list[Tensor] = []
    off = below.unflatten(-1, (-1, width, width)).unbind(-3) if below.shape[-1] else ()
    for k, block in enumerate(diagonal.unflatten(-1, (-1, width, width)).unbind(-3)):
        if k:
            lower.append(torch.linalg.solve_triangular(factors[-1], off[k - 1].mT, upper=False).mT)
            block = block - lower[-1] @ lower[-1].mT
        factor, info = torch.linalg.cholesky_ex(block)
        if validation_enabled() and bool((info != 0).any()):
            raise ValueError(
                "FactorGraph: got a precision that is not positive definite, so exp(-E) has no finite integral. Add a "
                "confining factor to each connected part of the graph."
            )
        factors.append(torch.where((info == 0)[..., None, None], factor, torch.nan))
    return BandedGaussian(order, count, linear, tuple(factors), tuple(lower), constant)
