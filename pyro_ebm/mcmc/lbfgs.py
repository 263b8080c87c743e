"""Climbing a log density by L-BFGS, many paths in lock step, with the inverse Hessian that each has learned.

Paths are rows: nothing that one does depends on another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity

# The weak Wolfe conditions: sufficient increase, and a slope that has fallen (Nocedal and Wright 2006, section 3.1).
_SUFFICIENT, _FALLEN = 1e-4, 0.9
# Trials of a line search: steps shorter than 2^-20 of a Newton step are lost in rounding.
_MAX_TRIALS = 20


class Point(NamedTuple):
    """Where paths are.

    Attributes:
        position: `(paths, dim)`.
        value: the log density there, `(paths,)`.
        gradient: its gradient, `(paths, dim)`.
    """

    position: Tensor
    value: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, log_density: LogDensity, position: Tensor) -> Point:
        """Evaluate the log density at `(paths, dim)`; -inf where value or gradient is not finite."""
        value, gradient = log_density(position)
        sound = torch.isfinite(value) & torch.isfinite(gradient).all(-1)
        return cls(position, torch.where(sound, value, -torch.inf), gradient)


class LowRank(NamedTuple):
    """Positive definite matrices `diag(α) + βᵀ γ β`.

    Attributes:
        diagonal: α, `(paths, dim)`.
        rows: β, `(paths, rank, dim)`.
        core: γ, `(paths, rank, rank)`.
    """

    diagonal: Tensor
    rows: Tensor
    core: Tensor

    def multiply(self, vector: Tensor) -> Tensor:
        """The products with `(paths, dim)`."""
        inner = self.core @ (self.rows @ vector.unsqueeze(-1))
        product: Tensor = self.diagonal * vector + (inner.mT @ self.rows).squeeze(-2)
        return product


class InverseHessian(NamedTuple):
    """What the last moves of each path tell of the inverse Hessian of `-log p`.

    A pair of a move `s` and the fall `z` of the gradient over it is kept scaled such that `sᵀ z = 1`: only its
    direction counts. Pairs without positive curvature are left out.

    Attributes:
        diagonal: the diagonal that the low-rank part corrects, `(paths, dim)`.
        moves: the last s, oldest first, zero where there is none yet, `(paths, history, dim)`.
        falls: the z that belong to them, `(paths, history, dim)`.

    References:
        Gilbert and Lemaréchal 1989, Some numerical experiments with variable-storage quasi-Newton algorithms.
        Byrd, Nocedal and Schnabel 1994, Representations of quasi-Newton matrices, theorem 2.2.
    """

    diagonal: Tensor
    moves: Tensor
    falls: Tensor

    @classmethod
    def start(cls, position: Tensor, history: int) -> InverseHessian:
        """The identity, for paths at `(paths, dim)`."""
        none = position.new_zeros(len(position), history, position.shape[-1])
        return cls(torch.ones_like(position), none, none)

    @property
    def untried(self) -> Tensor:
        """Which paths have no pair yet, `(paths,)`."""
        return ~self.moves[:, -1].any(-1)

    def update(self, move: Tensor, fall: Tensor) -> InverseHessian:
        """Take in a pair of each path, both `(paths, dim)`: zero moves change nothing."""
        curvature = (move * fall).sum(-1, keepdim=True)
        scale = move.norm(dim=-1, keepdim=True) * fall.norm(dim=-1, keepdim=True)
        sound = curvature > torch.finfo(move.dtype).eps * scale
        root = torch.where(sound, curvature, 1).sqrt()
        move, fall = move / root, fall / root
        along = (self.diagonal * fall.square()).sum(-1, keepdim=True)
        share = move.square() / self.diagonal
        rest = (1 - share / share.sum(-1, keepdim=True)).clamp(min=0)
        diagonal = 1 / (along * rest / self.diagonal + fall.square())
        sound_entry = sound & torch.isfinite(diagonal) & (diagonal > 0)
        sound = sound.unsqueeze(-1)
        return InverseHessian(
            torch.where(sound_entry, diagonal, self.diagonal),
            torch.where(sound, torch.cat([self.moves[:, 1:], move.unsqueeze(1)], 1), self.moves),
            torch.where(sound, torch.cat([self.falls[:, 1:], fall.unsqueeze(1)], 1), self.falls),
        )

    def matrix(self) -> LowRank:
        """The inverse Hessian: the diagonal, corrected by the L-BFGS updates of the pairs, oldest first."""
        scaled = self.diagonal.unsqueeze(1) * self.falls
        upper = (self.moves @ self.falls.mT).triu(1)  # the diagonal is one
        identity = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device).expand_as(upper)
        inverse = torch.linalg.solve_triangular(upper + identity, identity, upper=True)
        corner = inverse.mT @ (identity + self.falls @ scaled.mT) @ inverse
        core = torch.cat(
            [torch.cat([torch.zeros_like(upper), -inverse], -1), torch.cat([-inverse.mT, corner], -1)], dim=-2
        )
        return LowRank(self.diagonal, torch.cat([scaled, self.moves], 1), core)


def line_search(
    log_density: LogDensity, point: Point, direction: Tensor, first: Tensor, running: Tensor
) -> tuple[Point, Tensor]:
    """Go along a direction to where the weak Wolfe conditions hold, by bisection and doubling.

    A trial where the density is not finite is too far. A path that runs out of trials goes to the best place that it
    found with a sufficient increase; if there is none it stays.

    Args:
        log_density: the log density with its gradient: one call for each trial, for all paths.
        point: where the paths are.
        direction: uphill, `(paths, dim)`.
        first: the first step, as a share of `direction`, `(paths,)`.
        running: which paths are to go, `(paths,)`.

    Returns:
        Where they are then, and the number of trials that each needed, `(paths,)`.

    References:
        Lewis and Overton 2013, Nonsmooth optimization via quasi-Newton methods, algorithm 4.6.
    """
    slope = (point.gradient * direction).sum(-1)
    step, low, high = first, torch.zeros_like(first), torch.full_like(first, torch.inf)
    reached, pending, trials = point, running, torch.zeros_like(first, dtype=torch.long)
    for _ in range(_MAX_TRIALS):
        if not bool(pending.any()):
            break
        go = torch.where(pending, step, 0).unsqueeze(-1) * direction
        trial = Point.at(log_density, point.position + torch.where(pending.unsqueeze(-1), go, 0))
        trials = trials + pending
        enough = pending & (trial.value >= point.value + _SUFFICIENT * step * slope)
        reached = select(enough, trial, reached)
        steep = (trial.gradient * direction).sum(-1) > _FALLEN * slope
        low, high = torch.where(enough, step, low), torch.where(pending & ~enough, step, high)
        step = torch.where(torch.isfinite(high), 0.5 * (low + high), 2 * step)
        pending = pending & ~(enough & ~steep)
    return reached, trials


def select(chosen: Tensor, one: Point, other: Point) -> Point:
    """One point for the `chosen` paths, `(paths,)`, and the other for the rest."""
    rows = chosen.unsqueeze(-1)
    return Point(
        torch.where(rows, one.position, other.position),
        torch.where(chosen, one.value, other.value),
        torch.where(rows, one.gradient, other.gradient),
    )


class Climb(NamedTuple):
    """Paths on their way up.

    Attributes:
        point: where they are.
        inverse_hessian: what they have learned.
        matrix: the inverse Hessian as it is now.
        direction: the quasi-Newton step `H ∇log p`: to the centre of the local Gaussian, `(paths, dim)`.
        running: which paths still go, `(paths,)`.
        num_iterations: steps of each, `(paths,)`.
        num_evaluations: evaluations of the log density by each, `(paths,)`.
    """

    point: Point
    inverse_hessian: InverseHessian
    matrix: LowRank
    direction: Tensor
    running: Tensor
    num_iterations: Tensor
    num_evaluations: Tensor

    @classmethod
    def start(cls, log_density: LogDensity, position: Tensor, history: int) -> Climb:
        """Begin at `(paths, dim)`; a path whose log density or gradient is not finite there does not go."""
        point = Point.at(log_density, position)
        inverse_hessian = InverseHessian.start(position, history)
        none = torch.zeros(len(position), dtype=torch.long, device=position.device)
        running = torch.isfinite(point.value)
        matrix = inverse_hessian.matrix()
        return cls(point, inverse_hessian, matrix, point.gradient, running, none, none + 1)

    def advance(self, log_density: LogDensity, tolerance: float) -> Climb:
        """One step of each path that still goes.

        A path ends where a Newton step promises less than `tolerance` nats, or than rounding, and where no step leads
        up.
        """
        point, direction = self.point, self.direction
        slope = (point.gradient * direction).sum(-1)
        rounding = 4 * torch.finfo(slope.dtype).eps * point.value.abs()
        running = self.running & torch.isfinite(slope) & (0.5 * slope > rounding.clamp(min=tolerance))
        length: Tensor = torch.linalg.vector_norm(direction, dim=-1)
        first = torch.where(self.inverse_hessian.untried, 1 / length.clamp(min=1), 1)
        reached, trials = line_search(log_density, point, direction, first, running)
        moved = reached.position - point.position
        running = running & moved.any(-1)
        inverse_hessian = self.inverse_hessian.update(moved, point.gradient - reached.gradient)
        matrix = inverse_hessian.matrix()
        ahead = matrix.multiply(reached.gradient)
        # Rounding may cost the low-rank part its definiteness: the diagonal alone never loses it.
        uphill = (ahead * reached.gradient).sum(-1, keepdim=True) > 0
        return Climb(
            reached,
            inverse_hessian,
            matrix,
            torch.where(uphill, ahead, inverse_hessian.diagonal * reached.gradient),
            running,
            self.num_iterations + running,
            self.num_evaluations + trials,
        )
