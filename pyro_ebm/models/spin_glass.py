"""Spin glasses: Ising spins with couplings at random."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from pyro_ebm._core.supports import spin
from pyro_ebm.energies import FieldEnergy, IsingEnergy
from pyro_ebm.graphs import FactorGraph, Sites, sites_and_edges


class SpinGlass(FactorGraph):
    """Spins with couplings drawn at random: `E(x) = -β Σ_ij J_ij x_i x_j - β Σ_i h_i x_i`, with `x_i` in {-1, +1}.

    On a lattice it is the Edwards-Anderson model; on `networkx.complete_graph(n)`, with `scale=n**-0.5`, that of
    Sherrington and Kirkpatrick.

    Args:
        sites: the shape of a lattice, or a networkx graph.
        disorder: how the J are drawn: `"normal"`, or `"sign"` for ±1 with equal chances.
        scale: their standard deviation.
        beta: the inverse temperature β.
        field: h: a number, or a tensor `(sites,)`.
        periodic: whether the lattice closes on itself.
        generator: where the couplings come from; by default torch's global one.
        name: of the variable, an array of the lattice's shape.

    Attributes:
        coupling: J, `(edges,)`.

    References:
        Edwards and Anderson 1975, Theory of spin glasses.
        Sherrington and Kirkpatrick 1975, Solvable model of a spin-glass.
    """

    coupling: Tensor

    def __init__(
        self,
        sites: Sites,
        *,
        disorder: Literal["normal", "sign"] = "normal",
        scale: float = 1.0,
        beta: float = 1.0,
        field: float | Tensor | None = None,
        periodic: bool = False,
        generator: Generator | None = None,
        name: str = "x",
    ) -> None:
        super().__init__()
        if disorder not in ("normal", "sign"):
            raise ValueError(f'SpinGlass: got disorder "{disorder}", expected "normal" or "sign".')
        shape, edges = sites_and_edges(sites, periodic=periodic)
        drawn = torch.randn(len(edges), generator=generator)
        self.register_buffer("coupling", scale * (drawn if disorder == "normal" else drawn.sign()))
        x = self.variable(name, support=spin, shape=shape)
        if len(edges):
            self.factor(IsingEnergy(beta * self.coupling), x[edges])
        if field is not None:
            self.factor(FieldEnergy(beta * torch.as_tensor(field)), x[torch.arange(x.numel)])
