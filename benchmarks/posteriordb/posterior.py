"""What ties a Pyro model to a posterior of posteriordb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Data = Mapping[str, Any]
Samples = Mapping[str, Tensor]


@dataclass(frozen=True)
class Posterior:
    """A model with what ties it to its reference.

    Attributes:
        model: the Pyro model, for one chain.
        arguments: from the data of the reference to the model's arguments, in float64.
        parameters: from constrained samples by site, each `(chains, draws, *shape)`, to the reference's parameters in
            the reference's order, `(chains, draws, P)`.
    """

    model: Callable[..., None]
    arguments: Callable[[Data], tuple[Tensor, ...]]
    parameters: Callable[[Samples], Tensor]


def vector(values: Any) -> Tensor:
    """Data in float64."""
    return torch.as_tensor(values, dtype=torch.float64)


def columns(*values: Tensor) -> Tensor:
    """Values `(chains, draws, *shape)` side by side, `(chains, draws, P)`."""
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in values], -1)


def sites(*names: str) -> Callable[[Samples], Tensor]:
    """The parameters of a reference that are sites, and nothing else."""
    return lambda samples: columns(*(samples[name] for name in names))
