"""What an approximate engine returns, and the iteration that each of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import trange

from pyro_ebm._core.errors import ConvergenceWarning
from pyro_ebm._core.warn import warn
from pyro_ebm.graphs.approximate.stacking import Stack
from pyro_ebm.graphs.exact import Marginals


@dataclass(frozen=True, eq=False)
class Approximation:
    """An approximate answer about a discrete graph.

    Attributes:
        log_partition: what stands for log Z, in nats, `(*batch,)`: an estimate or a bound, as the engine says. Its
            gradients by the tables are the beliefs.
        marginals: the beliefs, in the form of exact marginals; they carry no gradients.
        mode: by variable the value of greatest belief of each element, `(*batch, *shape)`.
        residuals: the largest change in each iteration, `(iterations, *batch)`.
        converged: whether the last change is within the tolerance, `(*batch,)`.
    """

    log_partition: Tensor
    marginals: Marginals
    mode: dict[str, Tensor]
    residuals: Tensor
    converged: Tensor


def iterate(
    step: Callable[[], Tensor], *, max_iterations: int, tolerance: float, progress: bool, description: str
) -> Tensor:
    """Repeat a step until what it says has changed is within the tolerance, for all of the batch.

    Returns:
        What it said each time, `(iterations, B)`.

    Raises:
        ValueError: if there are no iterations to make, or the tolerance is negative.
    """
    if max_iterations < 1 or not tolerance >= 0:
        raise ValueError(
            f"{description}: got max_iterations={max_iterations} and tolerance={tolerance}, expected at least one "
            "iteration, and a tolerance that is not negative."
        )
    changes = []
    for _ in trange(max_iterations, desc=description, disable=not progress):
        changes.append(step())
        if float(changes[-1].max()) <= tolerance:
            break
    return torch.stack(changes)


def conclude(
    stack: Stack,
    value: Tensor,
    singles: Sequence[Tensor],
    blocks: Sequence[Tensor],
    residuals: Tensor,
    tolerance: float,
    description: str,
    remedy: str,
) -> Approximation:
    """The answer, and a warning to the engine's caller if part of the batch did not converge.

    Args:
        stack: the graph.
        value: what stands for log Z, `(*batch,)`.
        singles: beliefs by kind, `(N, B, K)`.
        blocks: beliefs by block, `(F, B, K_1, ..., K_r)`.
        residuals: `(iterations, B)`.
        tolerance: for the last of them.
        description: the engine.
        remedy: what to do where it does not converge.
    """
    converged = residuals[-1] <= tolerance
    missing = int((~converged).sum())
    if missing:
        which = f"{missing} of {len(converged)} graphs of the batch" if stack.tables.batch_shape else "the graph"
        warn(
            f"{description}: {which} did not converge in {len(residuals)} iterations: the last one changed "
            f"{float(residuals[-1].max()):.1e}, expected at most {tolerance:.1e}. {remedy}",
            ConvergenceWarning,
        )
    batch_shape = stack.tables.batch_shape
    return Approximation(
        value,
        stack.marginals(singles, blocks),
        stack.mode(singles),
        residuals.reshape(-1, *batch_shape),
        converged.reshape(batch_shape),
    )
