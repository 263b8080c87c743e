"""Random numbers from a generator of one's own."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor


def seeded_generator(device: torch.device, source: Generator | None = None) -> Generator:
    """A generator seeded from another, or from torch's global one, which `pyro.set_rng_seed` makes repeatable."""
    generator = Generator(device)
    where = torch.device("cpu") if source is None else source.device
    generator.manual_seed(int(torch.randint(2**62, (), generator=source, device=where)))
    return generator


@contextmanager
def seeded(generator: Generator | None, device: torch.device) -> Iterator[None]:
    """Let what draws from torch's global generator follow one of one's own, if there is one."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type=device.type):
        torch.manual_seed(seed)
        yield


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


def random_bits(shape: Sequence[int], device: torch.device, generator: Generator | None) -> Tensor:
    """Integers of 32 random bits: in less than half of the time of uniform numbers; see `uniform_of_bits`."""
    count = math.prod(shape)
    words = torch.empty((count + 1) // 2, dtype=torch.int64, device=device)
    return words.random_(generator=generator).view(torch.int32)[:count].reshape(list(shape))


def uniform_of_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in (0, 1), from 31 bits of each integer; none so near to 1 that `u x` is rounded to x."""
    spread = (bits.bitwise_and(0x7FFFFFFF).to(dtype) + 0.5) * 2.0**-31
    return spread.clamp(max=1 - 2.0**-23) if dtype == torch.float32 else spread
