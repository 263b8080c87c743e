"""Pathfinder: the Gaussians it fits, the draws it gives, and chains that start from them."""

import functools
import math
import resource
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from kernel_cases import generator, log_density_of, standard_errors
from models import data, eight_schools, schools
from pyro.infer.autoguide.initialization import init_to_uniform, init_to_value
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm import (
    HMC,
    MALA,
    MCMC,
    NUTS,
    ChEES,
    EnergyDistribution,
    Funnel,
    InitializationError,
    QuadraticEnergy,
    ReferenceEnergy,
    Rosenbrock,
    energy,
    init_to_pathfinder,
)
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.infer.energy_target import EnergyTarget
from pyro_ebm.infer.kernel import Kernel
from pyro_ebm.infer.model_target import ModelTarget
from pyro_ebm.infer.target import build_target
from pyro_ebm.mcmc.lbfgs import Climb, InverseHessian, LowRank
from pyro_ebm.mcmc.pathfinder import Fit, Gaussian, pathfinder, resample, truncated

pytestmark = pytest.mark.filterwarnings("ignore::pyro_ebm._core.errors.SamplingWarning")

DIM, CONDITION = 20, 1e3


def uniform_starts(paths: int, dim: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return 4 * torch.rand(paths, dim, dtype=dtype, generator=generator(seed)) - 2


def gaussian(rotated: bool, dim: int = DIM, dtype: torch.dtype = torch.float64) -> QuadraticEnergy:
    """With precisions over three decades, along the axes or along random directions."""
    precision = torch.logspace(-0.5, 0.5, dim, dtype=torch.float64).pow(math.log10(CONDITION)).diag()
    if rotated:
        basis = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator(9))).Q
        precision = basis @ precision @ basis.mT
    return QuadraticEnergy(precision.to(dtype), torch.ones(dim, dtype=dtype))


def dense(matrix: LowRank) -> Tensor:
    return torch.diag_embed(matrix.diagonal) + matrix.rows.mT @ matrix.core @ matrix.rows


def covariance(fit: Gaussian) -> Tensor:
    """By the images of the unit vectors, `(paths, dim, dim)`."""
    paths, dim = fit.mean.shape
    columns, _ = fit.draw(torch.eye(dim, dtype=fit.mean.dtype).unsqueeze(1).expand(-1, paths, -1))
    deviation = (columns - fit.mean).transpose(0, 1)
    return deviation.mT @ deviation


def climbed(log_density: LogDensity, start: Tensor, history: int, tolerance: float, steps: int = 500) -> Climb:
    climb = Climb.start(log_density, start, history)
    for _ in range(steps):
        climb = climb.advance(log_density, tolerance)
        if not climb.running.any():
            break
    return climb


# -- the inverse Hessian and its Gaussian ----------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3, 30])
def test_the_inverse_hessian_is_that_of_the_textbook(dim: int) -> None:
    """Against the diagonal's and the BFGS formulas, one pair at a time (Nocedal and Wright 2006, equation 6.17)."""
    paths, history, random = 4, 3, generator(1)
    factor = torch.randn(paths, dim, dim, dtype=torch.float64, generator=random)
    hessian = factor @ factor.mT + torch.eye(dim, dtype=torch.float64)
    learned = InverseHessian.start(torch.zeros(paths, dim, dtype=torch.float64), history)
    diagonal, pairs = torch.ones(paths, dim, dtype=torch.float64), []
    for number in range(1, 6):
        s = torch.randn(paths, dim, dtype=torch.float64, generator=random)
        z = (hessian @ s.unsqueeze(-1)).squeeze(-1)
        learned = learned.update(s, z)
        pairs.append((s, z))
        a, b, c = (x.sum(-1, keepdim=True) for x in (diagonal * z**2, s * z, s**2 / diagonal))
        diagonal = 1 / (a / (b * diagonal) + z**2 / b - a * s**2 / (b * c * diagonal**2))
        torch.testing.assert_close(learned.diagonal, diagonal)
        expected = torch.diag_embed(diagonal)
        for s, z in pairs[-history:]:
            scale = (s * z).sum(-1)[:, None, None]
            rest = torch.eye(dim, dtype=torch.float64) - s[:, :, None] * z[:, None, :] / scale
            expected = rest @ expected @ rest.mT + s[:, :, None] * s[:, None, :] / scale
        torch.testing.assert_close(dense(learned.matrix()), expected, rtol=1e-8, atol=1e-8)
        vector = torch.randn(paths, dim, dtype=torch.float64, generator=random)
        product = learned.matrix().multiply(vector)
        torch.testing.assert_close(product, (expected @ vector.unsqueeze(-1)).squeeze(-1), rtol=1e-8, atol=1e-8)
        assert number == len(pairs)


def test_pairs_without_curvature_are_left_out() -> None:
    start = InverseHessian.start(torch.zeros(3, 2), 4)
    moves = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    falls = torch.tensor([[-1.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
    learned = start.update(moves, falls)
    assert learned.untried.tolist() == [True, False, True]
    for path in (0, 2):
        torch.testing.assert_close(dense(learned.matrix())[path], torch.eye(2))
    # The secant equation: H z = s.
    torch.testing.assert_close(learned.matrix().multiply(falls)[1], moves[1])


@pytest.mark.parametrize("dim", [2, 30])
def test_a_gaussian_has_the_inverse_hessian_as_its_covariance(dim: int) -> None:
    target = log_density_of(gaussian(rotated=True, dim=dim))
    climb = climbed(target, uniform_starts(3, dim), 4, 1e-3, steps=4)
    fit = Gaussian.around(climb)
    assert fit.sound.all()
    expected = dense(climb.matrix)
    torch.testing.assert_close(covariance(fit), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        fit.mean, climb.point.position + (expected @ climb.point.gradient.unsqueeze(-1)).squeeze(-1)
    )
    draws, log_q = fit.draw(torch.randn(5, 3, dim, dtype=torch.float64, generator=generator(2)))
    truth = torch.distributions.MultivariateNormal(fit.mean, 0.5 * (expected + expected.mT))
    torch.testing.assert_close(log_q, truth.log_prob(draws), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rotated", [False, True])
def test_on_a_gaussian_the_fit_approaches_it(rotated: bool) -> None:
    """With a history as long as the path: mean, covariance and evidence lower bound become exact."""
    model = gaussian(rotated)
    climb = climbed(log_density_of(model), uniform_starts(6, DIM), 100, 1e-12)
    fit = Gaussian.around(climb)
    root = torch.linalg.cholesky(model.precision)  # in whitened coordinates: standard errors
    assert ((fit.mean - model.mean) @ root).abs().max() < 1e-4
    spread = torch.linalg.eigvalsh(root.mT @ covariance(fit) @ root)
    divergence = 0.5 * (spread - 1 - spread.log()).sum(-1)  # KL from the fit to the Gaussian, the means being equal
    noise = torch.randn(2000, 6, DIM, dtype=torch.float64, generator=generator(3))
    draws, log_q = fit.draw(noise)
    weight = -model(draws) - log_q
    error = weight.std(0) / math.sqrt(len(noise))
    elbo = model.log_partition() - divergence
    assert ((weight.mean(0) - elbo).abs() < standard_errors(6) * error + 1e-6).all()
    assert divergence.max() < 1
    assert divergence.mean() < 0.25


def test_in_few_dimensions_the_bound_is_log_z() -> None:
    model = gaussian(rotated=True, dim=3)
    found = pathfinder(log_density_of(model), uniform_starts(32, 3), generator(4))
    assert (found.elbo - model.log_partition()).abs().max() < 0.2
    torch.testing.assert_close(found.log_density, -model(found.position))
    # Draws of the Gaussian: their squared distances are chi-square.
    root = torch.linalg.cholesky(model.precision)
    squared = ((found.position - model.mean) @ root).square().sum(-1)
    assert (squared.mean() - 3).abs() < standard_errors(1) * math.sqrt(6 / 32)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_of_a_gaussian_are_in_its_bulk(rotated: bool, dtype: torch.dtype) -> None:
    model = gaussian(rotated, dtype=dtype)
    found = pathfinder(log_density_of(model), uniform_starts(64, DIM, dtype), generator(5))
    assert found.position.dtype == found.elbo.dtype == dtype
    assert (found.elbo < model.log_partition() + 3).all()
    assert typical_share(found.log_density, -model(model.sample((5000,), generator=generator(6)))) >= 0.95


def typical_share(log_density: Tensor, exact: Tensor) -> float:
    """How many log densities lie in the range of all but a thousandth of the exact draws."""
    low, high = exact.quantile(0.0005), exact.amax()
    return float(((log_density >= low) & (log_density <= high)).double().mean())


@pytest.mark.parametrize("model", [Rosenbrock(), Rosenbrock(1.0, 100.0), Funnel(10)], ids=["banana", "thin", "funnel"])
def test_draws_of_curved_densities_are_typical(model: ReferenceEnergy) -> None:
    (dim,) = model.event_shape
    start = uniform_starts(64, dim, torch.float32)
    found = pathfinder(log_density_of(model), start, generator(7))
    exact = -model(model.sample((5000,), generator=generator(8)))
    assert typical_share(found.log_density, exact) >= 0.95
    assert torch.isfinite(found.elbo).all()
    assert (found.elbo < model.log_partition() + 1).all()


# -- many paths ------------------------------------------------------------------------------------------------------


def two_modes(gap: float, dim: int = 5) -> LogDensity:
    """Gaussians at -6 and at 6 in each coordinate, the second lower by `gap` nats."""
    return log_density_of(
        energy(
            lambda x: -torch.logaddexp(-0.5 * (x + 6).square().sum(-1), -0.5 * (x - 6).square().sum(-1) - gap),
            event_shape=(dim,),
        )
    )


def modes_of(position: Tensor) -> Tensor:
    return position.mean(-1) > 0


def test_paths_in_a_mode_without_mass_start_elsewhere() -> None:
    start = 6 * torch.tensor([-1.0, 1.0]).repeat(32).unsqueeze(-1) + 0.5 * uniform_starts(64, 5, torch.float32)
    found = pathfinder(two_modes(100.0), start, generator(1))
    poor = found.elbo < found.elbo.max() - 90
    assert torch.equal(poor, modes_of(start))
    assert not modes_of(found.position).any()
    own = torch.arange(64)
    assert ((found.source != own) == poor).all()
    assert not poor[found.source].any()
    assert len(found.position.unique(dim=0)) == 64
    assert len(found.source.unique()) == 64 - poor.sum()


def test_modes_with_mass_are_kept() -> None:
    start = 6 * torch.tensor([-1.0, 1.0]).repeat(32).unsqueeze(-1) + 0.5 * uniform_starts(64, 5, torch.float32)
    found = pathfinder(two_modes(10.0), start, generator(1))
    assert (modes_of(found.position) == modes_of(start)).all()
    assert (found.source == torch.arange(64)).all()


def test_truncated_weights() -> None:
    weights = truncated(torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(9.0), 0.0, -torch.inf, -torch.inf]]), dim=1).exp()
    # Of two weights 9 and 1 the mean is 5, and the first is at most 5 √2.
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0, 1.0, 1.0], [5 * math.sqrt(2.0), 1.0, 0.0, 0.0]]))


def test_draws_are_chosen_by_their_weights() -> None:
    """One path of two, with weights 1 and 3 of its draws, and many times the same: a binomial count."""
    paths, three = 4000, math.log(3.0)
    draws = torch.tensor([0.0, 1.0]).reshape(2, 1, 1).expand(2, paths, 1)
    log_weight = torch.tensor([0.0, three]).unsqueeze(-1).expand(2, paths)
    climb = Climb.start(log_density_of(QuadraticEnergy(torch.eye(1))), draws[0], 2)
    fit = Fit(torch.zeros(paths), draws, log_weight, log_weight, climb.num_iterations)
    share = resample(fit, climb, generator(1)).position.mean()
    expected = min(3.0, 4 / math.sqrt(2)) / (1 + min(3.0, 4 / math.sqrt(2)))
    assert (share - expected).abs() < standard_errors(1) * math.sqrt(expected * (1 - expected) / paths)


@pytest.mark.parametrize("model", [Rosenbrock().double(), gaussian(rotated=True), Funnel(10).double()])
def test_a_path_does_not_depend_on_the_others(model: ReferenceEnergy) -> None:
    (dim,) = model.event_shape
    start, random, log_density = uniform_starts(5, dim), generator(2), log_density_of(model)
    noise = [torch.randn(4, 5, dim, dtype=torch.float64, generator=random) for _ in range(15)]

    def fitted(rows: slice) -> tuple[Climb, Fit]:
        climb = Climb.start(log_density, start[rows], 6)
        fit = Fit.none(climb, 4)
        for each in noise:
            climb = climb.advance(log_density, 1e-4)
            fit = fit.improve(log_density, climb, each[:, rows])
        return climb, fit

    climb, fit = fitted(slice(None))
    for path in range(5):
        rows = slice(path, path + 1)
        alone, own = fitted(rows)
        assert torch.equal(alone.num_iterations, climb.num_iterations[rows])
        assert torch.equal(alone.num_evaluations, climb.num_evaluations[rows])
        torch.testing.assert_close(alone.point.position, climb.point.position[rows], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own.elbo, fit.elbo[rows], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own.draws, fit.draws[:, rows], rtol=1e-5, atol=1e-5)


def test_the_same_seed_repeats() -> None:
    model = log_density_of(Funnel(4))
    first, again, other = (pathfinder(model, uniform_starts(8, 4), generator(seed)) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.position, other.position)


# -- robustness ------------------------------------------------------------------------------------------------------


def test_a_density_that_is_not_a_number_on_half_of_space() -> None:
    """The mode is two standard deviations inside: trials beyond the edge are taken back, and no draw lies there."""

    def half(position: Tensor) -> tuple[Tensor, Tensor]:
        inside = position[:, 0] > 0
        value = -0.5 * (position - 2).square().sum(-1)
        return torch.where(inside, value, torch.nan), torch.where(inside.unsqueeze(-1), 2 - position, torch.nan)

    start = uniform_starts(64, 4)
    start[:, 0] = start[:, 0].abs() + 1e-3
    found = pathfinder(half, start, generator(3))
    assert (found.position[:, 0] > 0).all()
    assert torch.isfinite(found.log_density).all()
    assert found.log_density.mean() > -8


def test_without_any_bound_a_path_gives_its_own_point() -> None:
    """Every Gaussian reaches beyond this slab, whose mode is on its edge."""

    def slab(position: Tensor) -> tuple[Tensor, Tensor]:
        inside = position.abs().amax(-1) < 1
        value = torch.where(inside, position.sum(-1), -torch.inf)
        return value, torch.ones_like(position)

    start = 0.4 * uniform_starts(16, 8)
    found = pathfinder(slab, start, generator(3))
    assert torch.isneginf(found.elbo).any()
    assert (found.position.abs() < 1).all()
    torch.testing.assert_close(found.log_density, found.position.sum(-1))
    assert found.log_density.mean() > start.sum(-1).mean()


def test_a_flat_density_and_a_start_at_the_mode_stay() -> None:
    flat = log_density_of(energy(lambda x: 0 * x.sum(-1), event_shape=(2,)))
    start = uniform_starts(3, 2)
    found = pathfinder(flat, start, generator(1))
    assert torch.equal(found.position, start)
    assert (found.num_iterations == 0).all()
    assert (found.num_evaluations == 1).all()
    normal = log_density_of(QuadraticEnergy(torch.eye(2, dtype=torch.float64)))
    at_mode = pathfinder(normal, torch.zeros(2, 2, dtype=torch.float64), generator(1))
    assert torch.equal(at_mode.position, torch.zeros(2, 2, dtype=torch.float64))


def test_a_path_from_nowhere_starts_elsewhere() -> None:
    def normal(position: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * position.square().sum(-1), -position

    start = uniform_starts(4, 3)
    start[1] = torch.nan
    found = pathfinder(normal, start, generator(1))
    assert torch.isneginf(found.elbo[1])
    assert found.source[1] != 1
    assert torch.isfinite(found.position).all()


def test_few_iterations() -> None:
    found = pathfinder(log_density_of(Funnel(5)), uniform_starts(8, 5), generator(1), max_iterations=3)
    assert (found.num_iterations <= 3).all()
    assert torch.isfinite(found.position).all()


def test_a_hundred_thousand_dimensions() -> None:
    """Memory is linear in the dimension: a matrix of it would have 40 GB."""
    precision = torch.logspace(-0.5, 0.5, 100_000)

    def wide(position: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * (precision * position.square()).sum(-1), -precision * position

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = pathfinder(wide, uniform_starts(2, 100_000, torch.float32), generator(1), max_iterations=20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024
    # In the bulk the log density is -dim / 2; the starts' is near -82,000. Six pairs do not tell every variance.
    assert (found.log_density / -50_000 - 1).abs().max() < 0.1


def test_resampled_draws_are_those_of_their_source() -> None:
    draws = torch.arange(24.0).reshape(2, 4, 3)
    elbo = torch.tensor([0.0, -50.0, -29.0, -torch.inf])
    climb = Climb.start(log_density_of(QuadraticEnergy(torch.eye(3))), draws[0], 2)
    fit = Fit(elbo, draws, draws[..., 0], torch.zeros(2, 4), climb.num_iterations)
    found = resample(fit, climb, generator(1))
    assert found.source[0] == 0
    assert found.source[2] == 2
    assert torch.isin(found.source, torch.tensor([0, 2])).all()
    assert len(found.position.unique(dim=0)) == 4
    for path, source in enumerate(found.source):
        assert (found.position[path] == draws[:, source]).all(-1).any()
        assert found.log_density[path] == found.position[path, 0]


# -- chains ----------------------------------------------------------------------------------------------------------


def logistic(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    weight = pyro.sample("weight", dist.Normal(0.0, scale).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def regression_data() -> tuple[Tensor, Tensor]:
    x = data(21, 300, 12) @ data(22, 12, 12)
    return x, (x @ (0.3 * data(23, 12)) + data(24, 300) > 0).to(x)


MODELS: list[tuple[Callable[..., None], Callable[[], tuple[Any, ...]]]] = [
    (logistic, regression_data),
    (eight_schools, schools),
]


@pytest.mark.parametrize(("model", "arguments"), MODELS, ids=["logistic", "schools"])
def test_chains_start_in_the_bulk(model: Callable[..., None], arguments: Callable[[], tuple[Any, ...]]) -> None:
    """Starts, and the first draws of the warm-up, have the log densities of a long run's draws."""
    args = arguments()
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_pathfinder), 100, 100, num_chains=16, save_warmup=True, disable_progbar=True
    )
    mcmc.run(*args)
    bulk = mcmc.sample_stats()["lp"].flatten()
    first = mcmc.warmup_draws()[1]["lp"][:, 0]
    assert typical_share(first, bulk) >= 0.9
    target = build_target(model, args, {})
    starts, _ = target.log_density(target.initial_points(init_to_pathfinder, 64))
    assert typical_share(starts, bulk) >= 0.9


@pytest.mark.parametrize("kernel", [NUTS, HMC, MALA, ChEES])
def test_every_kernel_takes_it(kernel: type[Kernel]) -> None:
    strategy = functools.partial(init_to_pathfinder, max_iterations=5)
    mcmc = MCMC(kernel(Funnel(3), init_strategy=strategy), 5, 5, num_chains=4, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (4, 5, 3)


def test_energies_and_distributions_on_constrained_supports() -> None:
    """In unconstrained coordinates `u = log x` a Gamma(50) is nearly Gaussian."""
    gamma = energy(lambda x: (x - 49 * x.log()).sum(-1), event_shape=(3,), support=constraints.positive)
    for strategy in (init_to_pathfinder, init_to_pathfinder(radius=0.5), init_to_pathfinder(max_iterations=50)):
        target = EnergyTarget(EnergyDistribution(gamma))
        x = target.constrain(target.initial_points(strategy, 200))["x"]
        assert x.shape == (200, 3)
        assert (x.mean() - 50).abs() < standard_errors(3) * math.sqrt(50 / 600) + 0.5
    loc = torch.tensor([-2.0, 0.0, 4.0])
    tilted = EnergyDistribution(energy(lambda x: 0.5 * x.square(), event_shape=()), dist.Normal(loc, 1.0))
    points = EnergyTarget(tilted).initial_points(init_to_pathfinder, 400)
    assert ((points.mean(0) - 0.5 * loc).abs() < standard_errors(3) * math.sqrt(0.5 / 400) + 0.01).all()


def test_paths_start_within_the_radius_where_the_density_is_finite() -> None:
    seen: list[Tensor] = []

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("half", torch.where(x < 0.05, torch.nan, 0.0))

    target = ModelTarget(model, (), {})
    whole = target.log_density
    target.log_density = lambda position: seen.append(position) or whole(position)  # type: ignore
    points = target.initial_points(init_to_pathfinder(radius=0.1), 50)
    assert (points >= 0.05).all()
    assert seen[0].abs().max() <= 0.1


def test_seeds_of_pyro_repeat_the_starts() -> None:
    starts = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        starts.append(ModelTarget(eight_schools, schools(), {}).initial_points(init_to_pathfinder, 4))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


# -- errors ----------------------------------------------------------------------------------------------------------


def test_it_cannot_start_one_site_alone() -> None:
    message = r'got one site, "mu".*pyro_ebm.NUTS\(model, init_strategy=init_to_pathfinder\).*init_to_uniform'
    stock = pyro.infer.NUTS(eight_schools, init_strategy=init_to_pathfinder)
    with pytest.raises(TypeError, match=message):
        pyro.infer.MCMC(stock, num_samples=1, disable_progbar=True).run(*schools())
    guide = pyro.infer.autoguide.AutoNormal(eight_schools, init_loc_fn=init_to_pathfinder(radius=1.0))
    with pytest.raises(TypeError, match=message):
        guide(*schools())
    fallback = init_to_value(values={}, fallback=init_to_pathfinder)
    with pytest.raises(TypeError, match=message):
        ModelTarget(eight_schools, schools(), {}).initial_points(fallback, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"radius": 0.0}, "got radius 0.0"), ({"max_iterations": 0}, "got max_iterations 0, expected at least 1")],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        init_to_pathfinder(**options)
    with pytest.raises(ValueError, match=message):
        EnergyTarget(EnergyDistribution(Funnel(2))).initial_points(functools.partial(init_to_pathfinder, **options), 2)
    with pytest.raises(TypeError, match="radus"):
        EnergyTarget(EnergyDistribution(Funnel(2))).initial_points(functools.partial(init_to_pathfinder, radus=1.0), 2)


def test_no_finite_start_is_said_as_by_other_strategies() -> None:
    nowhere = energy(lambda x: x * torch.nan, event_shape=())
    for strategy in (init_to_uniform, init_to_pathfinder):
        with pytest.raises(InitializationError, match="3 of 3 chains"):
            EnergyTarget(EnergyDistribution(nowhere)).initial_points(strategy, 3)
