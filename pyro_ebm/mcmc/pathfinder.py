"""Pathfinder: draws from Gaussians that are fitted along optimisation paths, as starts for chains.

Each path climbs the log density by L-BFGS. At each of its points the inverse Hessian that it has learned gives a
Gaussian, and of these the one with the greatest evidence lower bound is nearest to the target. So a path that runs on
to a mode far outside of the bulk, as in a funnel, is taken where it crossed the bulk.

References:
    Zhang, Carpenter, Gelman and Vehtari 2022, Pathfinder: parallel quasi-Newton variational inference.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.lbfgs import Climb

MAX_ITERATIONS = 200
# A path ends where a Newton step promises fewer nats: the mode is then far nearer than one standard deviation.
_TOLERANCE = 1e-4
# A path ends when so many steps in a row brought no better Gaussian: it has left the bulk.
_PATIENCE = 20
# The pairs that an inverse Hessian is made of, and the draws that estimate an evidence lower bound.
_HISTORY, _NUM_DRAWS = 6, 10
# Paths whose evidence lower bound is so many nats below the best one start elsewhere: what they found has no share of
# the target's mass, and their chains would not leave it. Fits of one mode differ by about √dim nats, so that in many
# dimensions it is so many times that.
_MAX_DEFICIT, _MAX_DEFICIT_PER_ROOT = 30.0, 5.0
# Numbers that are given to the log density at once.
_MOST_NUMBERS = 2**23


class Gaussian(NamedTuple):
    """Gaussians with covariances `diag(s) (I - Q Qᵀ + Q L Lᵀ Qᵀ) diag(s)`.

    Attributes:
        mean: `(paths, dim)`.
        scale: s, `(paths, dim)`.
        basis: Q, orthonormal columns, `(paths, dim, rank)`.
        factor: L, lower-triangular, `(paths, rank, rank)`.
        sound: whether the covariance is positive definite, `(paths,)`.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor
    factor: Tensor
    sound: Tensor

    @classmethod
    def around(cls, climb: Climb) -> Gaussian:
        """The Gaussians that paths see around them: one Newton step away, with their inverse Hessian."""
        matrix, scale = climb.matrix, climb.matrix.diagonal.sqrt()
        basis, triangle = torch.linalg.qr((matrix.rows / scale.unsqueeze(1)).mT)
        core = triangle @ matrix.core @ triangle.mT
        identity = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
        factor, info = torch.linalg.cholesky_ex(identity + core)
        return cls(climb.point.position + climb.direction, scale, basis, factor, info == 0)

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal `(draws, paths, dim)` to draws, and their log densities `(draws, paths)`."""
        inside = noise.transpose(0, 1) @ self.basis
        stretch = (inside @ self.factor.mT - inside) @ self.basis.mT
        draws = self.mean + self.scale * (noise + stretch.transpose(0, 1))
        log_det = self.scale.log().sum(-1) + self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * noise.shape[-1] * math.log(2 * math.pi)
        return draws, -0.5 * noise.square().sum(-1) - log_det - constant


class Fit(NamedTuple):
    """The best Gaussian of each path so far, by what was drawn from it.

    Attributes:
        elbo: the estimate of its evidence lower bound, in nats, `(paths,)`; -inf where there is none yet.
        draws: `(draws, paths, dim)`.
        log_density: that of the target, `(draws, paths)`.
        log_weight: `log p - log q`, `(draws, paths)`.
        waiting: steps since, `(paths,)`.
    """

    elbo: Tensor
    draws: Tensor
    log_density: Tensor
    log_weight: Tensor
    waiting: Tensor

    @classmethod
    def none(cls, climb: Climb, num_draws: int) -> Fit:
        """No Gaussian yet: the paths' starts stand for draws."""
        value = climb.point.value.expand(num_draws, -1)
        draws = climb.point.position.expand(num_draws, -1, -1)
        nothing = torch.full_like(climb.point.value, -torch.inf)
        return cls(nothing, draws, value, torch.zeros_like(value), torch.zeros_like(climb.num_iterations))

    def improve(self, log_density: LogDensity, climb: Climb, noise: Tensor) -> Fit:
        """Take the Gaussian around each path that has just moved, where it is better.

        While none has an evidence lower bound, the path's own point stands for its draws.

        Args:
            log_density: the log density with its gradient.
            climb: the paths.
            noise: standard normal, `(draws, paths, dim)`.
        """
        gaussian = Gaussian.around(climb)
        draws, log_q = gaussian.draw(noise)
        rows = max(noise.shape[1], _MOST_NUMBERS // noise.shape[-1])
        parts = [_finite_value(log_density, part) for part in draws.flatten(0, 1).split(rows)]
        value = torch.cat(parts).reshape(log_q.shape)
        log_weight = value - log_q
        elbo = log_weight.mean(0)
        elbo = torch.where(gaussian.sound & torch.isfinite(elbo), elbo, -torch.inf)
        better = climb.running & (elbo > self.elbo)
        nothing = climb.running & ~better & torch.isneginf(self.elbo)
        here = climb.point

        def choose(new: Tensor, own: Tensor, old: Tensor) -> Tensor:
            extra = (1,) * (old.dim() - 2)
            return torch.where(better.reshape(-1, *extra), new, torch.where(nothing.reshape(-1, *extra), own, old))

        return Fit(
            torch.where(better, elbo, self.elbo),
            choose(draws, here.position, self.draws),
            choose(value, here.value, self.log_density),
            choose(log_weight, torch.zeros_like(here.value), self.log_weight),
            torch.where(better | nothing, 0, self.waiting + 1),
        )


class Paths(NamedTuple):
    """What the paths found.

    Attributes:
        position: a draw for each, `(paths, dim)`.
        log_density: there, `(paths,)`.
        elbo: the evidence lower bound of each path's own Gaussian, in nats, `(paths,)`; -inf if it found none.
        source: the path that each draw is of, `(paths,)`: its own, or that of a better one.
        num_iterations: steps of each path, `(paths,)`.
        num_evaluations: evaluations of the log density by each path, `(paths,)`.
    """

    position: Tensor
    log_density: Tensor
    elbo: Tensor
    source: Tensor
    num_iterations: Tensor
    num_evaluations: Tensor


def pathfinder(
    log_density: LogDensity, start: Tensor, generator: Generator, *, max_iterations: int = MAX_ITERATIONS
) -> Paths:
    """Climb from each start, and draw from the best Gaussian on the way.

    A path gives one of the draws by which its evidence lower bound was estimated, chosen by their importance weights
    `p / q`. A path whose bound is more than `max(30, 5 √dim)` nats below the best gets a draw of another path, chosen
    by their weights among all that the better paths did not give themselves. So that starts stay diverse, weights are
    truncated, and no draw is given twice while there are others.

    Args:
        log_density: the log density with its gradient.
        start: where the paths begin, `(paths, dim)`, with finite density and gradient.
        generator: where the randomness comes from.
        max_iterations: steps of a path at the most.

    Returns:
        `Paths`.
    """
    climb = Climb.start(log_density, start, _HISTORY)
    fit = Fit.none(climb, _NUM_DRAWS)
    for _ in range(max_iterations):
        climb = climb.advance(log_density, _TOLERANCE)
        if not bool(climb.running.any()):
            break
        fit = fit.improve(log_density, climb, normal(fit.draws.shape, start, generator))
        climb = climb._replace(running=climb.running & (fit.waiting < _PATIENCE))
    return resample(fit, climb, generator)


def resample(fit: Fit, climb: Climb, generator: Generator) -> Paths:
    """One draw for each path: of its own, or of a better path's, by truncated importance weights.

    References:
        Ionides 2008, Truncated importance sampling.
    """
    num_draws, num_paths = fit.log_weight.shape
    deficit = max(_MAX_DEFICIT, _MAX_DEFICIT_PER_ROOT * fit.draws.shape[-1] ** 0.5)
    sound = fit.elbo >= fit.elbo.max() - deficit
    path = torch.arange(num_paths, device=sound.device)
    # Adding Gumbel noise to log weights and taking the greatest draws by weight, without replacement.
    noise = -(-uniform(fit.log_weight.shape, fit.log_weight, generator).log()).log()
    draw = (truncated(fit.log_weight, dim=0) + noise).argmax(0)
    free = sound.repeat(num_draws, 1)
    free[draw, path] = False
    poor = int((~sound).sum())
    pool = torch.where(free, fit.log_weight, -torch.inf).flatten()
    order = (truncated(pool, dim=0) + noise.flatten()).topk(min(poor, int(free.sum()))).indices
    given = order[torch.arange(poor, device=order.device) % max(len(order), 1)]
    path[~sound], draw[~sound] = given % num_paths, given // num_paths
    evaluations = climb.num_evaluations + num_draws * climb.num_iterations
    return Paths(fit.draws[draw, path], fit.log_density[draw, path], fit.elbo, path, climb.num_iterations, evaluations)


def truncated(log_weight: Tensor, dim: int) -> Tensor:
    """Log weights, of `n` that are not -inf, with weights of at most `√n` times their mean."""
    log_count = torch.isfinite(log_weight).sum(dim, keepdim=True).log()
    return torch.minimum(log_weight, log_weight.logsumexp(dim, keepdim=True) - 0.5 * log_count)


def _finite_value(log_density: LogDensity, position: Tensor) -> Tensor:
    value, gradient = log_density(position)
    return torch.where(torch.isfinite(value) & torch.isfinite(gradient).all(-1), value, -torch.inf)
