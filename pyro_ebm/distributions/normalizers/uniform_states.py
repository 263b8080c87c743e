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
        integers: whether values are labels, of an integer dtype.
    """

    arg_constraints = {}  # noqa: RUF012  (torch's own declaration)

    def __init__(self, found: tuple[int, int, int], like: Tensor, *, integers: bool) -> None:
        self._range, self._like, self._integers = found, like, integers
        super().__init__(like.shape, validate_args=False)

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = Size()) -> Tensor:  # noqa: B008  (torch's signature)
        """Draws `(*sample, *batch)`."""
        low, spacing, count = self._range
        shape = self._extended_shape(Size(sample_shape))
        states = low + spacing * torch.randint(count, shape, device=self._like.device)
        return states if self._integers else states.to(self._like.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """The same everywhere, `(*sample, *batch)`."""
        return torch.full_like(value, -math.log(self._range[2]), dtype=self._like.dtype)
