"""What an objective finds in the first data that it sees, and keeps from then on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Fitted(nn.Module):
    """Buffers that are made at the first call, and saved and loaded like any other.

    Args:
        names: of the buffers; `None` until they are made.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names
        for name in names:
            self.register_buffer(name, None)

    @property
    def is_fitted(self) -> bool:
        """Whether they have been made."""
        return any(getattr(self, name) is not None for name in self._names)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self._names:
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class DataScale(Fitted):
    """The standard deviation of each element of the events in the first data, `(*event)`: the unit of perturbations."""

    value: Tensor | None

    def __init__(self) -> None:
        super().__init__("value")

    def forward(self, data: Tensor, event_dim: int, what: str) -> Tensor:
        """The scale, found in `(*sample, *batch, *event)` if this is the first call.

        Raises:
            ValueError: if some element of the data does not vary.
        """
        if self.value is None:
            events = data.flatten(0, data.dim() - event_dim - 1) if data.dim() > event_dim else data.unsqueeze(0)
            scale = (events - events.mean(0)).square().mean(0).sqrt()
            if not bool((scale > 0).all()):
                raise ValueError(
                    f"{what}: got first data of {len(events)} events in which {int((scale == 0).sum())} elements do "
                    "not vary, expected some spread in each, for it is the unit of the perturbations. Give more data "
                    "at the first call, or add noise to elements that are constant."
                )
            self.value = scale
        return self.value
