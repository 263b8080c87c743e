"""The uniform distribution on the states of discrete elements."""

import math

import torch
from torch import Size, Tensor
from torch.distributions import Distribution


class UniformStates(Distribution):
    """Each element is one of K values `low, low + spacing, ...`, all as likely: `log p = -log K`.

    Args:
        found: `low`, `spacing` and K.
        like: a tensor of the batch shape, for dtype and device.
    """

    arg_constraints = {}  # noqa: RUF012  (torch's own declaration)

    def __init__(self, found: tuple[int, int, int], like: Tensor) -> None:
        self._range, self._like = found, like
        super().__init__(like.shape, validate_args=False)

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = Size()) -> Tensor:  # noqa: B008  (torch's signature)
        """Draws `(*sample, *batch)`."""
        low, spacing, count = self._range
        shape = self._extended_shape(Size(sample_shape))
        states = torch.randint(count, shape, device=self._like.device).to(self._like.dtype)
        return low + spacing * states

    def log_prob(self, value: Tensor) -> Tensor:
        """The same everywhere, `(*sample, *batch)`."""
        return torch.full_like(value, -math.log(self._range[2]))
