"""Random numbers from a generator of one's own."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def seeded_generator(device: torch.device) -> Generator:
    """A generator seeded from torch's global one, so that `pyro.set_rng_seed` makes a run repeatable."""
    generator = Generator(device)
    generator.manual_seed(int(torch.randint(2**62, ())))
    return generator


def coarse_normal(shape: Sequence[int], like: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal numbers on the device of `like`, in single precision, which is several times faster.

    As momenta and noise, their grain of 1e-7 is far below any Monte Carlo error.
    """
    return torch.randn(list(shape), generator=generator, dtype=torch.float32, device=like.device)


def normal(shape: Sequence[int], like: Tensor, generator: Generator | None) -> Tensor:
    """Those of `coarse_normal`, with the dtype of `like`."""
    return coarse_normal(shape, like, generator).to(like.dtype)


def uniform(shape: Sequence[int], like: Tensor, generator: Generator | None) -> Tensor:
    """Uniform numbers in [0, 1) with the dtype and device of `like`."""
    return torch.rand(list(shape), generator=generator, dtype=like.dtype, device=like.device)
