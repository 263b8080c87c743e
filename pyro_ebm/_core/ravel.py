"""Raveling: `{site: tensor}` with leading chain dims, to and from one `(chains, dim)` matrix."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Size, Tensor


@dataclass(frozen=True)
class Raveler:
    """Lays the sites of a model side by side in one vector, in the order given.

    Args:
        shapes: the shape of each site, without any chain dim.

    >>> raveler = Raveler({"a": torch.Size([2]), "b": torch.Size([])})
    >>> flat = raveler.ravel({"a": torch.zeros(3, 2), "b": torch.ones(3)})
    >>> flat.shape, raveler.unravel(flat)["b"].shape
    (torch.Size([3, 3]), torch.Size([3]))
    """

    shapes: Mapping[str, Size]

    @property
    def dim(self) -> int:
        """The length of the vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    def ravel(self, sites: Mapping[str, Tensor]) -> Tensor:
        """`{site: (*lead, *shape)}` to `(*lead, dim)`."""
        parts = [
            sites[name].reshape((*sites[name].shape[: sites[name].dim() - len(shape)], shape.numel()))
            for name, shape in self.shapes.items()
        ]
        return torch.cat(parts, dim=-1)

    def unravel(self, flat: Tensor) -> dict[str, Tensor]:
        """`(*lead, dim)` to `{site: (*lead, *shape)}`."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape((*flat.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
