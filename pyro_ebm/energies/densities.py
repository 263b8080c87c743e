"""Test densities with known answers: what samplers, objectives and estimators are held against.

Each has an exact `log_partition`, `mean` and `variance`, and exact draws by `sample`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.energies.energy import Energy
from pyro_ebm.energies.quadratic import QuadraticEnergy


def correlated_gaussian(dim: int = 2, correlation: float = 0.9, dtype: torch.dtype | None = None) -> QuadraticEnergy:
    """A zero-mean Gaussian with unit variances and one correlation between all pairs.

    Raises:
        ValueError: if the correlation is not in `(-1 / (dim - 1), 1)`.
    """
    lowest = -1 / max(dim - 1, 1)
    if not lowest < correlation < 1:
        raise ValueError(f"correlated_gaussian: got correlation {correlation}, expected in ({lowest:.3g}, 1).")
    covariance = torch.full((dim, dim), correlation, dtype=dtype).fill_diagonal_(1.0)
    return QuadraticEnergy(torch.linalg.inv(covariance))


class ReferenceEnergy(Energy):
    """An energy with known answers, in nats and without a batch shape."""

    _anchor: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # carries dtype and device

    @abstractmethod
    def log_partition(self) -> Tensor:
        """Log Z in nats, `()`."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """The mean, `(*event,)`."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """The marginal variances, `(*event,)`."""

    @abstractmethod
    def sample(self, sample_shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Exact draws, `(*sample, *event)`."""

    def _randn(self, *shape: int, generator: Generator | None) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=self._anchor.dtype, device=self._anchor.device)

    def _tensor(self, value: float | Sequence[float]) -> Tensor:
        return torch.as_tensor(value, dtype=self._anchor.dtype, device=self._anchor.device)


def _categories(probabilities: Tensor, num_draws: int, generator: Generator | None) -> Tensor:
    """Draws by inversion, `(num_draws,)`; none are as good as many, which torch.multinomial refuses."""
    cumulative = probabilities.cumsum(0)
    level = torch.rand(num_draws, generator=generator, dtype=cumulative.dtype, device=cumulative.device)
    return torch.searchsorted(cumulative, level * cumulative[-1], right=True).clamp(max=len(cumulative) - 1)


class _LineTable:
    """Moments and draws of a density on a line, by quadrature on a fine grid: for the 1-d densities here."""

    def __init__(self, energy: Tensor, grid: Tensor) -> None:
        self.grid = grid
        shift = energy.amin()
        self.weights = torch.exp(shift - energy) * (grid[1] - grid[0])
        self.log_partition = self.weights.sum().log() - shift
        self.probabilities = self.weights / self.weights.sum()

    def moment(self, power: int) -> Tensor:
        return (self.probabilities * self.grid**power).sum()

    def draw(self, num_draws: int, generator: Generator | None) -> Tensor:
        cells = _categories(self.probabilities, num_draws, generator)
        jitter = torch.rand(num_draws, generator=generator, dtype=self.grid.dtype, device=self.grid.device) - 0.5
        return self.grid[cells] + jitter * (self.grid[1] - self.grid[0])


class DoubleWell(ReferenceEnergy):
    """Independent double wells `E(x) = Σ_i h (x_i² - 1)²`, with minima at ±1 and barriers of height `h`.

    Args:
        dim: number of coordinates d; event shape `(d,)`, `2^d` modes of equal mass.
        barrier: the height `h` of the barriers, in nats.
    """

    def __init__(self, dim: int = 1, barrier: float = 4.0) -> None:
        super().__init__((dim,))
        self.barrier = barrier

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, d)`, `(*sample,)`."""
        return self.barrier * (x.square() - 1).square().sum(-1)

    def _table(self) -> _LineTable:
        reach = 1 + 3 / self.barrier**0.25 + 3 / self.barrier**0.5
        grid = torch.linspace(-reach, reach, 20_001, dtype=torch.float64, device=self._anchor.device)
        return _LineTable(self.barrier * (grid**2 - 1) ** 2, grid)

    def log_partition(self) -> Tensor:
        """Log Z in nats, by quadrature to float64's precision."""
        return (self.event_shape[0] * self._table().log_partition).to(self._anchor)

    @property
    def mean(self) -> Tensor:
        """Zero, by symmetry."""
        return self._anchor.new_zeros(self.event_shape)

    @property
    def variance(self) -> Tensor:
        """`E[x²]`, by quadrature."""
        return self._table().moment(2).to(self._anchor).expand(self.event_shape)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws by inversion on a grid of spacing below 1e-3."""
        shape = Size([*sample_shape, *self.event_shape])
        return self._table().draw(shape.numel(), generator).to(self._anchor).reshape(shape)


class Ring(ReferenceEnergy):
    """A ring in the plane, `E(x) = (|x| - r)² / (2 s²)`.

    Args:
        radius: the radius r.
        scale: the width s.
    """

    def __init__(self, radius: float = 2.0, scale: float = 0.2) -> None:
        super().__init__((2,))
        self.radius, self.scale = radius, scale

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, 2)`, `(*sample,)`."""
        radius: Tensor = torch.linalg.vector_norm(x, dim=-1)
        return 0.5 * ((radius - self.radius) / self.scale).square()

    def _table(self) -> _LineTable:
        low, high = max(0.0, self.radius - 10 * self.scale), self.radius + 10 * self.scale
        edges = torch.linspace(low, high, 20_001, dtype=torch.float64, device=self._anchor.device)
        grid = 0.5 * (edges[1:] + edges[:-1])
        return _LineTable(0.5 * ((grid - self.radius) / self.scale) ** 2 - grid.log(), grid)

    def log_partition(self) -> Tensor:
        """`log 2π ∫ ρ exp(-(ρ - r)² / 2s²) dρ`, in nats, by its closed form."""
        ratio = self.radius / self.scale
        radial = math.exp(-0.5 * ratio**2) + ratio * math.sqrt(math.pi / 2) * (1 + math.erf(ratio / math.sqrt(2)))
        return self._tensor(math.log(2 * math.pi * self.scale**2 * radial))

    @property
    def mean(self) -> Tensor:
        """Zero, by symmetry."""
        return self._anchor.new_zeros(2)

    @property
    def variance(self) -> Tensor:
        """`E[|x|²] / 2` for each coordinate, by quadrature."""
        return (self._table().moment(2) / 2).to(self._anchor).expand(2)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws: the radius by inversion on a grid, the angle uniform."""
        shape = Size(sample_shape)
        radius = self._table().draw(shape.numel(), generator).to(self._anchor).reshape(*shape, 1)
        direction = self._randn(*shape, 2, generator=generator)
        length: Tensor = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        return radius * direction / length


class GaussianMixture(ReferenceEnergy):
    """A normalised mixture of isotropic Gaussians, evenly spaced on a circle in the plane: `log Z = 0`.

    Args:
        num_components: number of Gaussians K.
        radius: the circle's radius.
        scale: the standard deviation of each Gaussian.
        weights: the masses `(K,)`, summing to one; equal if not given.

    Raises:
        ValueError: if the weights are not K masses that sum to one.
    """

    locs: Tensor
    weights: Tensor

    def __init__(
        self, num_components: int = 8, radius: float = 4.0, scale: float = 0.5, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__((2,))
        masses = [1 / num_components] * num_components if weights is None else list(weights)
        if len(masses) != num_components or min(masses) <= 0 or abs(sum(masses) - 1) > 1e-6:
            raise ValueError(
                f"GaussianMixture: got weights {masses}, expected {num_components} positive masses that sum to one."
            )
        angles = 2 * math.pi * torch.arange(num_components) / num_components
        self.register_buffer("locs", radius * torch.stack([angles.cos(), angles.sin()], dim=-1))
        self.register_buffer("weights", torch.tensor(masses))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, 2)`, `(*sample,)`."""
        squared = (x.unsqueeze(-2) - self.locs).square().sum(-1)
        log_scale = math.log(2 * math.pi * self.scale**2)
        return log_scale - torch.logsumexp(self.weights.log() - 0.5 * squared / self.scale**2, dim=-1)

    def log_partition(self) -> Tensor:
        """Zero: the mixture is normalised."""
        return self._tensor(0.0)

    @property
    def mean(self) -> Tensor:
        """The mean, `(2,)`."""
        return self.weights @ self.locs

    @property
    def variance(self) -> Tensor:
        """The marginal variances, `(2,)`."""
        return self.weights @ self.locs.square() + self.scale**2 - self.mean.square()

    def sample(self, sample_shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Exact draws, `(*sample, 2)`."""
        shape = Size(sample_shape)
        component = _categories(self.weights, shape.numel(), generator)
        noise = self._randn(*shape, 2, generator=generator)
        return self.locs[component].reshape(*shape, 2) + self.scale * noise


class Rosenbrock(ReferenceEnergy):
    """The banana `E(x) = a (x₁ - 1)² + b (x₂ - x₁²)²`.

    Args:
        a: stiffness along the valley.
        b: stiffness across it.

    References:
        Pagani, Wiegand and Nadarajah 2022, An n-dimensional Rosenbrock distribution for MCMC testing.
    """

    def __init__(self, a: float = 0.05, b: float = 5.0) -> None:
        super().__init__((2,))
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, 2)`, `(*sample,)`."""
        first, second = x[..., 0], x[..., 1]
        return self.a * (first - 1).square() + self.b * (second - first.square()).square()

    def log_partition(self) -> Tensor:
        """`log(π / √(ab))` nats."""
        return self._tensor(math.log(math.pi) - 0.5 * math.log(self.a * self.b))

    @property
    def mean(self) -> Tensor:
        """`(1, 1 + 1/(2a))`."""
        return self._tensor([1.0, 1 + 0.5 / self.a])

    @property
    def variance(self) -> Tensor:
        """`x₁ ~ N(1, v)` with `v = 1/(2a)`; `Var[x₂] = 1/(2b) + 4v + 2v²`."""
        v = 0.5 / self.a
        return self._tensor([v, 0.5 / self.b + 4 * v + 2 * v**2])

    def sample(self, sample_shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Exact draws, `(*sample, 2)`."""
        noise = self._randn(*sample_shape, 2, generator=generator)
        first = 1 + noise[..., 0] / math.sqrt(2 * self.a)
        return torch.stack([first, first.square() + noise[..., 1] / math.sqrt(2 * self.b)], dim=-1)


class Funnel(ReferenceEnergy):
    """Neal's funnel: `v ~ N(0, s²)`, and `x_i ~ N(0, exp(v))` for the other coordinates; `log Z = 0`.

    Args:
        dim: number of coordinates d, the first being v.
        scale: the standard deviation s of v.

    References:
        Neal 2003, Slice sampling.
    """

    def __init__(self, dim: int = 10, scale: float = 3.0) -> None:
        super().__init__((dim,))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, d)`, `(*sample,)`."""
        v, rest = x[..., 0], x[..., 1:]
        count = rest.shape[-1]
        constant = 0.5 * (count + 1) * math.log(2 * math.pi) + math.log(self.scale)
        quadratic = 0.5 * (v / self.scale).square() + 0.5 * torch.exp(-v) * rest.square().sum(-1)
        return quadratic + 0.5 * count * v + constant

    def log_partition(self) -> Tensor:
        """Zero: the funnel is normalised."""
        return self._tensor(0.0)

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self._anchor.new_zeros(self.event_shape)

    @property
    def variance(self) -> Tensor:
        """`s²` for v, `exp(s²/2)` for the others."""
        others = math.exp(0.5 * self.scale**2)
        return self._tensor([self.scale**2] + [others] * (self.event_shape[0] - 1))

    def sample(self, sample_shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Exact draws, `(*sample, d)`."""
        noise = self._randn(*sample_shape, *self.event_shape, generator=generator)
        v = self.scale * noise[..., :1]
        return torch.cat([v, torch.exp(0.5 * v) * noise[..., 1:]], dim=-1)
