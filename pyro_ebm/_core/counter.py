"""Random numbers as a function of a seed: made where they are needed, and only there.

The n-th number is a hash of the seed and of n, so that a compiled step need not be handed numbers that it may not use,
and every way to run it has the same ones. The hash is SplitMix64's, and normal numbers come in pairs, by their radius
and angle.

References:
    Box and Muller 1958, A note on the generation of random normal deviates.
    Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators.
    Salmon, Moraes, Dror and Shaw 2011, Parallel random numbers: as easy as 1, 2, 3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

_STRIDE, _FIRST, _SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_LOW = 2**32 - 1


def draw_seeds(shape: Sequence[int], like: Tensor, generator: Generator) -> Tensor:
    """Seeds on the device of `like`, int64."""
    return torch.randint(2**63 - 1, list(shape), generator=generator, device=like.device)


def normal_at(seed: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal numbers of a seed `()`, with the dtype and device of `like`."""
    count = math.prod(shape)
    bits = _bits(seed, -(-count // 2))
    radius = (-2 * _unit(bits & _LOW, like).log()).sqrt()
    turn = _unit(_right(bits, 32), like)
    # Its sine is the cosine of a quarter turn less: compilers would compute a sine and a cosine of one angle together,
    # but only for one number at a time.
    pair = [radius * (2 * math.pi * part).cos() for part in (turn, turn - 0.25)]
    return torch.cat(pair)[:count].reshape(shape)


def uniform_at(seed: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """Uniform numbers in (0, 1] of a seed `()`, independent of its normal ones, as `like` as those."""
    return _unit(_right(_bits(~seed, math.prod(shape)), 32), like).reshape(shape)


def _bits(seed: Tensor, count: int) -> Tensor:
    bits = seed + torch.arange(1, count + 1, device=seed.device) * _STRIDE  # it wraps around
    bits = (bits ^ _right(bits, 30)) * _FIRST
    bits = (bits ^ _right(bits, 27)) * _SECOND
    return bits ^ _right(bits, 31)


def _right(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right, with zeros coming in."""
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted


def _unit(bits: Tensor, like: Tensor) -> Tensor:
    """32 bits to the middle of one of as many parts of the interval from zero to one."""
    return (bits.to(like.dtype) + 0.5) * 2.0**-32
