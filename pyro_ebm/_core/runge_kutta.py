"""Ordinary differential equations, by an explicit Runge-Kutta pair whose steps follow an error that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import starmap

import torch
from torch import Tensor

State = tuple[Tensor, ...]

# The pair of orders 5 and 4 of Dormand and Prince: when each slope is taken, of which ones before, the step, and what
# the step of order 4 differs by. The last slope is the first of the next step.
_NODES = (0.2, 0.3, 0.8, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERRORS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# A step is made so long that its error is expected to be at 0.9⁵ of the one asked for, and changes by these factors.
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0


def integrate(
    slope: Callable[[float, State], State],
    state: State,
    start: float,
    end: float,
    size: Callable[[State, float], Tensor],
    *,
    tolerance: float,
    max_steps: int = 10_000,
) -> State:
    """Carry a state from one time to another by `dy/dt = slope(t, y)`.

    Args:
        slope: the right side, of the shapes of the state.
        state: what it starts from.
        start: the first time.
        end: the last one.
        size: of an error at a time, `()`: what is to be below the tolerance in each step.
        tolerance: the largest error of a step.
        max_steps: the most steps, rejected ones among them.

    Raises:
        RuntimeError: if there are more, or errors are not finite.

    References:
        Dormand and Prince 1980, A family of embedded Runge-Kutta formulae.

    >>> (y,) = integrate(lambda t, y: (-y[0],), (torch.ones(()),), 0.0, 1.0, lambda e, _: e[0].abs(), tolerance=1e-6)
    >>> y
    tensor(0.3679)
    """
    step, time = (end - start) / 20, start
    first = slope(time, state)
    for _ in range(max_steps):
        last = abs(end - time) <= abs(step)
        step = end - time if last else step
        slopes = [first]
        moved = state
        for node, weights in zip(_NODES, _STAGES, strict=True):
            moved = _moved(state, slopes, weights, step)
            slopes.append(slope(time + node * step, moved))
        zero = tuple(torch.zeros_like(part) for part in state)
        error = float(size(_moved(zero, slopes, _ERRORS, step), time).detach()) / tolerance
        if error <= 1:
            time, state, first = time + step, moved, slopes[-1]
            if last:
                return state
        factor = _SAFETY * error**-0.2 if error > 0 else _GROW  # NaN shrinks the step
        step = step * (min(_GROW, max(_SHRINK, factor)) if factor == factor else _SHRINK)
    raise RuntimeError(
        f"integrate: got to {time:.4g} after {max_steps} steps, expected {end:.4g}: the equation is stiff, or its "
        "slope not finite. Raise the tolerance; look at the slope there."
    )


def _moved(state: State, slopes: Sequence[State], weights: Sequence[float], step: float) -> State:
    """The state, moved by a step along a combination of slopes."""
    used = [(weight, slope) for weight, slope in zip(weights, slopes, strict=False) if weight]

    def part(number: int, value: Tensor) -> Tensor:
        total = value
        for weight, slope in used:
            total = total + step * weight * slope[number]
        return total

    return tuple(starmap(part, enumerate(state)))
