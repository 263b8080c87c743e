"""Persistent walkers: log Z tracked, its gradient and curvature right, refreshed once, saved, refused where wrong."""

import math
import pickle
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_ebm import (
    MCMC,
    NUTS,
    AnchorError,
    CompiledWalkersError,
    Energy,
    EnergyDistribution,
    FactorGraph,
    FunctionEnergy,
    Ising,
    NegativeLogLikelihood,
    NeuralEnergy,
    NormalizerError,
    PersistentWalkers,
    SharedNormalizerError,
    StepTooLargeError,
    StochasticPotentialError,
    TableEnergy,
    TrainingWarning,
    WalkersDivergedError,
    spin,
)


class Tilt(Energy):
    """The tilt `a z²/2 - b z` of a standard normal: `log Z = -½ log(1 + a) + ½ b² / (1 + a)`."""

    def __init__(self, a: float = 0.0, b: float = 0.0) -> None:
        super().__init__(())
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return self.a * z**2 / 2 - self.b * z

    def exact(self) -> Tensor:
        return -0.5 * torch.log1p(self.a) + 0.5 * self.b**2 / (1 + self.a)


def normal(*batch: int) -> dist.Normal:
    return dist.Normal(torch.zeros(batch, dtype=torch.float64), 1.0)


def tilted(walkers: PersistentWalkers, a: float = 0.0, b: float = 0.0) -> tuple[Tilt, EnergyDistribution]:
    energy = Tilt(a, b)
    return energy, EnergyDistribution(energy, normal(), log_normalizer=walkers)


def move(energy: Tilt, a: float, b: float, distribution: EnergyDistribution, steps: int = 20) -> None:
    """Lead the parameters along a straight line that does not listen to the walkers."""
    start, end = torch.stack([energy.a, energy.b]).detach(), torch.tensor([a, b], dtype=torch.float64)
    for step in range(1, steps + 1):
        present = start + (end - start) * step / steps
        energy.a.data.copy_(present[0])
        energy.b.data.copy_(present[1])
        distribution.log_prob(torch.zeros((), dtype=torch.float64))


def test_a_zero_tilt_has_log_z_zero_without_an_error() -> None:
    walkers = PersistentWalkers(100)
    _, p = tilted(walkers)
    x = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(x), normal().log_prob(x))
    assert walkers.value == 0
    assert walkers.standard_error == 0


@pytest.mark.parametrize("seed", range(5))
def test_log_z_is_tracked_within_its_error(seed: int) -> None:
    pyro.set_rng_seed(seed)
    walkers = PersistentWalkers(1000)
    energy, p = tilted(walkers)
    move(energy, 2.0, 1.5, p)
    error = float(walkers.standard_error)
    assert 0 < error < 0.1
    # Sixteen groups make the standard error itself uncertain: Student's t with 15 degrees of freedom, at 1e-4.
    assert abs(float(walkers.value - energy.exact().detach())) < 5.2 * error


def test_annealing_finds_log_z_where_the_tilt_is_not_zero() -> None:
    pyro.set_rng_seed(0)
    walkers = PersistentWalkers(1000)
    energy, p = tilted(walkers, 8.0, 12.0)
    p.log_prob(torch.zeros((), dtype=torch.float64))
    assert abs(float(walkers.value - energy.exact().detach())) < 5.2 * float(walkers.standard_error) < 0.5


def test_gradient_and_hessian_are_those_of_log_z() -> None:
    pyro.set_rng_seed(1)
    walkers = PersistentWalkers(20_000)
    energy, p = tilted(walkers)
    move(energy, 1.0, 1.0, p)
    log_z = -p.log_prob(torch.zeros((), dtype=torch.float64)) + normal().log_prob(torch.zeros((), dtype=torch.float64))
    parameters = (energy.a, energy.b)
    got = torch.stack(torch.autograd.grad(log_z, parameters, create_graph=True))
    second = torch.stack([torch.stack(torch.autograd.grad(each, parameters, retain_graph=True)) for each in got])
    exact = torch.stack(torch.autograd.grad(energy.exact(), parameters, create_graph=True))
    exact_second = torch.stack([torch.stack(torch.autograd.grad(e, parameters, retain_graph=True)) for e in exact])
    # Moments of 20,000 walkers, of which at least half count: 4 standard errors of z², z⁴ / 4 and their products.
    tolerance = 4 * 2.0 / math.sqrt(10_000)
    torch.testing.assert_close(got, exact, atol=tolerance, rtol=0)
    torch.testing.assert_close(second, exact_second, atol=tolerance, rtol=0)


def test_walkers_are_refreshed_once_for_each_change() -> None:
    walkers = PersistentWalkers(50)
    energy, p = tilted(walkers)
    x = torch.zeros(3, dtype=torch.float64)
    for _ in range(3):
        p.log_prob(x)
        p.expand([4, 3]).log_prob(x)
    assert walkers.num_refreshes == 0
    energy.a.data.add_(0.1)  # as ClippedAdam does, behind torch's counters
    with torch.no_grad():
        p.log_prob(x)
    assert walkers.num_refreshes == 0
    for _ in range(3):
        p.log_prob(x)
    assert walkers.num_refreshes == 1


def test_a_closure_that_changes_is_noticed() -> None:
    scale = torch.tensor(0.0, dtype=torch.float64)
    walkers = PersistentWalkers(50)
    p = EnergyDistribution(FunctionEnergy(lambda z: scale * z**2, event_shape=()), normal(), log_normalizer=walkers)
    p.log_prob(torch.zeros(2, dtype=torch.float64))
    scale.fill_(0.1)
    p.log_prob(torch.zeros(2, dtype=torch.float64))
    p.log_prob(torch.zeros(2, dtype=torch.float64))
    assert walkers.num_refreshes == 1


def test_a_batch_has_a_log_z_for_each() -> None:
    pyro.set_rng_seed(2)
    a = nn.Parameter(torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64))

    class Batch(Energy):
        def __init__(self) -> None:
            super().__init__((), batch_shape=(3,))
            self.a = a

        def forward(self, z: Tensor) -> Tensor:
            return self.a * z**2 / 2

    walkers = PersistentWalkers(1000)
    p = EnergyDistribution(Batch(), normal(), log_normalizer=walkers)
    p.log_prob(torch.zeros(3, dtype=torch.float64))
    error = (walkers.value + 0.5 * torch.log1p(a.detach())).abs()
    assert bool((error <= 5.2 * walkers.standard_error).all())


@pytest.mark.parametrize("support", ["positive", "simplex"])
def test_constrained_supports(support: str) -> None:
    pyro.set_rng_seed(3)
    double = torch.float64
    if support == "positive":  # Gamma(2, 1) tilted by x is Gamma(2, 2): log Z = -2 log 2
        base: dist.Distribution = dist.Gamma(torch.tensor(2.0, dtype=double), torch.tensor(1.0, dtype=double))
        energy: Energy = FunctionEnergy(lambda x: x, event_shape=(), support=base.support)
        exact = -2 * math.log(2)
    else:  # Dirichlet(1, 1, 1) tilted by -log x_1 is Dirichlet(2, 1, 1): log Z = log (1 / 3)
        base = dist.Dirichlet(torch.ones(3, dtype=double))
        energy = FunctionEnergy(lambda x: -x[..., 0].log(), event_shape=(3,), support=base.support)
        exact = -math.log(3)
    walkers = PersistentWalkers(1000)
    p = EnergyDistribution(energy, base, log_normalizer=walkers)
    p.log_prob(base.sample())
    assert abs(float(walkers.value) - exact) < 5.2 * float(walkers.standard_error)
    draws = p.sample((200,))
    assert bool(p.support.check(draws).all())


class Pairwise(Energy):
    def __init__(self, coupling: nn.Parameter) -> None:
        super().__init__(coupling.shape[:1], support=dist.constraints.boolean)
        self.coupling = coupling

    def forward(self, x: Tensor) -> Tensor:
        return -((x @ self.coupling) * x).sum(-1)


def test_discrete_states_by_gibbs_with_gradients() -> None:
    pyro.set_rng_seed(4)
    coupling = nn.Parameter(torch.randn(6, 6, dtype=torch.float64).tril(-1) * 0.4)
    energy = Pairwise(coupling)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)

    walkers = PersistentWalkers(1000)
    p = EnergyDistribution(energy, log_normalizer=walkers)
    for scale in (1.0, 1.2, 1.4):
        with torch.no_grad():
            coupling.mul_(scale)
        p.log_prob(states[:1])
    exact = torch.logsumexp(-energy(states), 0).detach()
    assert abs(float(walkers.value - exact)) < 5.2 * float(walkers.standard_error)


def told_to_stand_still(change: Callable[[], object], p: EnergyDistribution, num_changes: int) -> list[str]:
    at = torch.zeros(p.batch_shape + p.event_shape, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(num_changes):
            with torch.no_grad():
                change()
            p.log_prob(at)
    return [str(each.message) for each in told if issubclass(each.category, TrainingWarning)]


def test_discrete_walkers_that_stand_still_are_told_of_once() -> None:
    pyro.set_rng_seed(5)
    coupling = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))
    p = EnergyDistribution(Pairwise(coupling), log_normalizer=PersistentWalkers(200))
    assert not told_to_stand_still(lambda: coupling.add_(0.002), p, 60)
    # to where single changes of all-on states are refused
    (told,) = told_to_stand_still(lambda: coupling.add_(0.05), p, 100)
    assert "less than 1%, expected more: walkers stand still" in told
    assert not told_to_stand_still(lambda: coupling.add_(0.001), p, 60)


def test_continuous_walkers_that_stand_still_are_told_of_once() -> None:
    """Where a density narrows faster than the step of MALA follows."""
    pyro.set_rng_seed(5)
    energy, p = tilted(PersistentWalkers(200))
    assert not told_to_stand_still(lambda: energy.a.add_(1).mul_(1.05).sub_(1), p, 60)
    (told,) = told_to_stand_still(lambda: energy.a.add_(1).mul_(1.2).sub_(1), p, 100)
    assert "less than 15%, expected more: walkers stand still" in told


def svi_model(p: EnergyDistribution, x: Tensor) -> Callable[[], None]:
    def model() -> None:
        pyro.module("energy", p.energy)
        with pyro.plate("data", len(x)):
            pyro.sample("x", p, obs=x)

    return model


def test_labels_of_a_graph_by_gibbs_sweeps() -> None:
    pyro.set_rng_seed(11)
    graph = FactorGraph()
    x = graph.variable("x", num_states=3, shape=(5,))
    graph.factor(TableEnergy(nn.Parameter(torch.randn(4, 3, 3, dtype=torch.float64)), arity=2), x[:-1], x[1:])
    walkers = PersistentWalkers(2000)
    p = EnergyDistribution(graph, log_normalizer=walkers)
    p.log_prob(torch.zeros(5, dtype=torch.long))
    assert abs(float((walkers.value - graph.log_partition()).detach())) < 5.2 * float(walkers.standard_error)
    assert p.expand((2,)).sample((3,)).shape == (3, 2, 5)


def test_a_network_over_a_whole_discrete_variable_has_no_sweeps() -> None:
    pyro.set_rng_seed(12)
    net = nn.Sequential(nn.Linear(30, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)).double()
    graph = FactorGraph()
    graph.factor(NeuralEnergy(net, (30,), support=spin), graph.variable("x", support=spin, shape=(30,)))
    assert not graph.has_gibbs_step
    walkers = PersistentWalkers(50)
    assert EnergyDistribution(graph, log_normalizer=walkers).log_prob(torch.ones(30).double()).isfinite()
    assert walkers.standard_error.isfinite()


def test_svi_learns_the_maximum_likelihood() -> None:
    pyro.set_rng_seed(5)
    x = 1.5 + 0.6 * torch.randn(500, dtype=torch.float64)
    energy, p = tilted(PersistentWalkers(2000))
    model = svi_model(p, x)
    svi = SVI(model, AutoDelta(model), ClippedAdam({"lr": 0.1, "lrd": 0.99}), Trace_ELBO())
    for _ in range(400):
        svi.step()
    mean, variance = (energy.b / (1 + energy.a)).detach(), (1 / (1 + energy.a)).detach()
    # The noise of the gradient, of 2000 walkers, averaged over tens of steps.
    assert abs(float(mean) - float(x.mean())) < 4 * 0.6 / math.sqrt(2000)
    assert abs(float(variance) - float(x.var(correction=0))) < 4 * 0.36 * math.sqrt(2 / 2000)


def test_saved_walkers_go_on_to_the_same_numbers() -> None:
    pyro.set_rng_seed(6)
    energy, p = tilted(PersistentWalkers(100))
    move(energy, 1.0, 0.5, p)
    saved = pickle.loads(pickle.dumps(p))
    move(energy, 1.5, 1.0, p)
    move(saved.energy, 1.5, 1.0, saved)
    x = torch.randn(4, dtype=torch.float64)
    assert torch.equal(p.log_prob(x), saved.log_prob(x))


# What is refused


def beta_model(walkers: PersistentWalkers | None, spins: Tensor) -> Callable[[], None]:
    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(torch.tensor(0.3), 0.5))
        with pyro.plate("data", len(spins)):
            pyro.sample("x", EnergyDistribution(Ising((3, 3), beta, periodic=True), log_normalizer=walkers), obs=spins)

    return model


def spins() -> Tensor:
    pyro.set_rng_seed(7)
    return Ising((3, 3), 0.25, periodic=True).sample((20,))["x"]


def test_walkers_that_move_are_refused_under_nuts_over_parameters() -> None:
    with pytest.raises(StochasticPotentialError, match="freeze"):
        MCMC(NUTS(beta_model(PersistentWalkers(50), spins())), num_samples=5, warmup_steps=5).run()


def test_pyros_own_nuts_is_refused_too() -> None:
    kernel = pyro.infer.NUTS(beta_model(PersistentWalkers(50), spins()))
    with pytest.raises(StochasticPotentialError, match="freeze"):
        pyro.infer.MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True).run()


def test_nuts_over_parameters_with_frozen_walkers() -> None:
    data = spins()
    walkers = PersistentWalkers(4000)

    def at(beta: float) -> EnergyDistribution:
        return EnergyDistribution(Ising((3, 3), torch.tensor(beta), periodic=True), log_normalizer=walkers)

    grid = torch.linspace(-0.3, 1.0, 261)
    prior = dist.Normal(0.3, 0.5).log_prob(grid)
    log_likelihood = torch.stack(
        [-at(b).energy({"x": data}).sum() - len(data) * at(b).energy.log_partition() for b in grid.tolist()]
    )
    weight = torch.softmax((log_likelihood + prior).double(), 0)
    mean = float((weight * grid).sum())
    sd = float((weight * (grid - mean) ** 2).sum().sqrt())
    at(mean).log_prob(data)
    walkers.refresh(at(mean), num_steps=50)
    walkers.freeze()
    mcmc = MCMC(NUTS(beta_model(walkers, data)), num_samples=200, warmup_steps=150, num_chains=4)
    mcmc.run()
    draws = mcmc.get_samples()["beta"]
    # The score of 20 data by 8000 walkers errs by 20 sd(Σ xx) / √8000 = 1.5, so the mean by 0.05 sd; the error of the
    # draws is as much, for a few hundred that count, and that of their sd 4 %.
    assert abs(float(draws.mean()) - mean) < 4 * math.hypot(0.06, 0.06) * sd
    assert abs(float(draws.std()) / sd - 1) < 0.2
    for beta in draws[::60].tolist():
        walkers.check(at(beta))
    with pytest.raises(AnchorError, match="unfreeze"):
        walkers.check(at(mean - 2.0))


def test_frozen_walkers_refuse_parameters_that_are_far() -> None:
    pyro.set_rng_seed(8)
    walkers = PersistentWalkers(200)
    energy, p = tilted(walkers)
    p.log_prob(torch.zeros((), dtype=torch.float64))
    walkers.freeze()
    with torch.no_grad():
        energy.b.fill_(0.3)
    near = p.log_prob(torch.zeros((), dtype=torch.float64))
    assert abs(float((near + energy.exact()).detach()) + 0.5 * math.log(2 * math.pi)) < 4 * 0.3 / math.sqrt(400)
    with torch.no_grad():
        energy.b.fill_(4.0)
    with pytest.raises(AnchorError, match="count"):
        p.log_prob(torch.zeros((), dtype=torch.float64))


def test_a_step_too_large_is_refused() -> None:
    energy, p = tilted(PersistentWalkers(200))
    p.log_prob(torch.zeros((), dtype=torch.float64))
    with torch.no_grad():
        energy.b.fill_(5.0)
    with pytest.raises(StepTooLargeError, match="learning rate"):
        p.log_prob(torch.zeros((), dtype=torch.float64))


def test_parameters_that_are_not_finite_are_refused() -> None:
    energy, p = tilted(PersistentWalkers(200))
    p.log_prob(torch.zeros((), dtype=torch.float64))
    with torch.no_grad():
        energy.b.fill_(torch.nan)
    with pytest.raises(WalkersDivergedError, match="not finite"):
        p.log_prob(torch.zeros((), dtype=torch.float64))


def test_compiled_programs_are_refused() -> None:
    _, p = tilted(PersistentWalkers(50))
    model = svi_model(p, torch.zeros(3, dtype=torch.float64))
    svi = SVI(model, AutoNormal(model), ClippedAdam({"lr": 0.1}), JitTrace_ELBO())
    with pytest.raises(CompiledWalkersError, match="Jit"):
        svi.step()


def test_an_energy_without_a_base_is_refused() -> None:
    p = EnergyDistribution(Tilt(1.0), log_normalizer=PersistentWalkers(50))
    with pytest.raises(NormalizerError, match="base"):
        p.log_prob(torch.zeros((), dtype=torch.float64))


def test_walkers_are_as_many_as_asked_for() -> None:
    for options, trackers in (({}, 112), ({"num_trackers": 40}, 48), ({"num_trackers": 4}, 4)):
        walkers = PersistentWalkers(100, **options)  # in groups of equal size, 16 of them if there are so many
        _, p = tilted(walkers)
        p.log_prob(torch.zeros((), dtype=torch.float64))
        assert walkers.num_walkers == 100
        population = walkers.state_dict()["population"]
        assert (len(population["value"]), population["num_drivers"]) == (100 + trackers, 100)


def test_a_restart_has_the_error_of_one_annealing() -> None:
    walkers = PersistentWalkers(200, num_trackers=64)
    energy, p = tilted(walkers)
    move(energy, 3.0, 2.0, p)
    tracked = float(walkers.standard_error)
    walkers.restart(p, num_trackers=8000)
    assert float(walkers.standard_error) < tracked / 3
    exact = float(energy.exact().detach())
    assert abs(float(walkers.value) - exact) < 5.2 * float(
        walkers.standard_error
    )  # 4 sigma, by Student's t of 16 groups
    assert walkers.num_walkers == 200


def test_the_likelihood_reports_what_walkers_tell() -> None:
    walkers = PersistentWalkers(2000)
    energy, p = tilted(walkers)
    move(energy, 1.0, 0.0, p)
    data = torch.tensor([2.0, -2.0], dtype=torch.float64)
    loss, report = NegativeLogLikelihood()(p, data)
    assert {"log_partition", "log_partition_error", "energy_gap", "ess", "acceptance_rate"} < report.keys()
    assert float(report["log_partition"]) == float(walkers.value)
    # log p̃ is -z² up to a constant: -4 at the data, and -½ on average, with standard deviation ½ √2, over walkers.
    assert abs(float(report["energy_gap"]) + 3.5) < 4 * 0.5 * math.sqrt(2 / (2000 * float(report["ess"])))
    assert torch.equal(loss.detach(), report["loss"])


def test_one_log_z_for_many_energies_is_refused() -> None:
    energy = FunctionEnergy(lambda z: z**2, event_shape=(), batch_shape=(3,))
    with pytest.raises(SharedNormalizerError, match="one for each"):
        EnergyDistribution(energy, log_normalizer=torch.tensor(1.0))


@pytest.mark.parametrize("options", [{"num_walkers": 2}, {"num_steps": 0}, {"num_trackers": 2}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="PersistentWalkers"):
        PersistentWalkers(**options)
