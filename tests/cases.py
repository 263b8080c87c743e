"""Tables of cases, which the conformance tests run through."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as pyro_dist
import pyro.distributions.transforms as flows
import pytest
import torch
import torch.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm import (
    RBM,
    BilinearEnergy,
    DistributionEnergy,
    DoubleWell,
    Energy,
    FactorGraph,
    FieldEnergy,
    FunctionEnergy,
    Funnel,
    GaussianMixture,
    IsingEnergy,
    JointEnergy,
    MixtureEnergy,
    NeuralEnergy,
    NeuralTimeConditional,
    PottsEnergy,
    QuadraticEnergy,
    Ring,
    Rosenbrock,
    ScaledEnergy,
    StandardizedEnergy,
    SumEnergy,
    SumToZeroEnergy,
    TableEnergy,
    correlated_gaussian,
    energy,
    spin,
    time_mixture,
)

Shape = tuple[int, ...]
Draw = Callable[[Shape, torch.dtype], Tensor]


@dataclass(frozen=True)
class EnergyCase:
    """An energy, its shapes, and how to make values in its support.

    `make(dtype, seed)` builds it: another seed gives other parameters. `draws` has one entry for each variable, which
    maps a leading shape `(*sample, *batch)` and a dtype to values.
    """

    name: str
    factory: Callable[[torch.dtype, int], Energy]
    event_shapes: tuple[Shape, ...]
    draws: tuple[Draw, ...]
    batch_shape: Shape = ()
    discrete: bool = False

    def make(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Energy:
        return self.factory(dtype, seed)

    def values(self, lead: Shape = (), dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20)
            return tuple(draw(lead, dtype) for draw in self.draws)


def parametrize(cases: list[Any], name: str = "case") -> pytest.MarkDecorator:
    """Run a test for every case of a table."""
    return pytest.mark.parametrize(name, cases, ids=[case.name for case in cases])


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal draws that are the same in every dtype, up to rounding."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Values


def reals(*event: int) -> Draw:
    return lambda lead, dtype: torch.randn((*lead, *event), dtype=torch.float64).to(dtype)


def positives(*event: int) -> Draw:
    return lambda lead, dtype: torch.randn((*lead, *event), dtype=torch.float64).exp().to(dtype)


def simplices(size: int) -> Draw:
    return lambda lead, dtype: torch.randn((*lead, size), dtype=torch.float64).softmax(-1).to(dtype)


def integers(high: int, *event: int) -> Draw:
    return lambda lead, dtype: torch.randint(high, (*lead, *event)).to(dtype)


def spins(*event: int) -> Draw:
    return lambda lead, dtype: 2 * torch.randint(2, (*lead, *event)).to(dtype) - 1


# Networks


class ContextNet(nn.Module):
    """`(N, 2)` and covariates `(N, 3)` to `(N,)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 5), nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + self.second(context))).squeeze(-1)


class LevelNet(nn.Module):
    """`(N, 2)`, features of levels and covariates `(N, context)` to `(N,)`."""

    def __init__(self, context: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(2 + NeuralTimeConditional.num_features + context, 6)
        self.last = nn.Linear(6, 1)

    def forward(self, *given: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(torch.cat(given, -1)))).squeeze(-1)


class Coupling(nn.Module):
    """A bilinear form over two variables, `(*lead, 2)` and `(*lead, 3)` to `(*lead,)`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("...i,ij,...j->...", x, self.weight, y)


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int) -> nn.Module:
    """A network whose parameters depend on the seed and nothing else."""
    net = make()
    for index, parameter in enumerate(net.parameters()):
        parameter.data = 0.5 * randn(1000 * seed + index, *parameter.shape, dtype=dtype)
    return net.to(dtype)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 1), nn.Flatten(0))


def _convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.SiLU(), nn.Flatten(1), nn.Linear(3 * 16, 1), nn.Flatten(0))


def _scalar_net() -> nn.Module:
    return nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4), nn.Softplus(), nn.Linear(4, 1), nn.Flatten(0))


# Functions: at module level, so that they pickle


def harmonic(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def quartic(x: Tensor) -> Tensor:
    return x.square().square().sum(-1)


def cosine(x: Tensor) -> Tensor:
    return x.cos()


def spring(x: Tensor, y: Tensor) -> Tensor:
    return (x.sum(-1) - y).square()


def entropic(x: Tensor) -> Tensor:
    return (x * x.log()).sum(-1)


def _precision(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    root = randn(seed, *shape, shape[-1])
    return (root @ root.mT + 2 * torch.eye(shape[-1], dtype=torch.float64)).to(dtype)


# Energies


def _neural(make: Callable[[], nn.Module], *event: int) -> Callable[[torch.dtype, int], Energy]:
    return lambda dtype, seed: NeuralEnergy(seeded(make, dtype, seed), event_shape=event)


def _conditional(*batch: int) -> Callable[[torch.dtype, int], Energy]:
    return lambda dtype, seed: NeuralEnergy(
        seeded(ContextNet, dtype, seed), event_shape=(2,), context=randn(seed + 5, *batch, 3, dtype=dtype)
    )


def _levels(seed: int, *batch: int, dtype: torch.dtype) -> Tensor:
    return randn(seed + 7, *batch, dtype=dtype).exp()


def _neural_levels(*batch: int) -> Callable[[torch.dtype, int], Energy]:
    return lambda dtype, seed: NeuralTimeConditional(seeded(LevelNet, dtype, seed), (2,), data_scale=1.5).at(
        _levels(seed, *batch, dtype=dtype)
    )


def _conditional_levels(dtype: torch.dtype, seed: int) -> Energy:
    context = randn(seed + 5, 4, 3, dtype=dtype)
    family = NeuralTimeConditional(seeded(lambda: LevelNet(3), dtype, seed), (2,), context=context)
    return family.at(_levels(seed, 3, 1, dtype=dtype))


def _composed_levels(dtype: torch.dtype, seed: int) -> Energy:
    nets = [NeuralTimeConditional(seeded(LevelNet, dtype, seed + 10 * k), (2,)) for k in range(4)]
    known = QuadraticEnergy(_precision(seed, 2, dtype=dtype))
    mixed = time_mixture(nets[:2], torch.tensor([0.5, 2.0], dtype=dtype))
    return (known + 2.0 * nets[2] - 0.1 * nets[3] + mixed).at(_levels(seed, 4, dtype=dtype))


def _normal(dtype: torch.dtype, seed: int) -> Energy:
    return DistributionEnergy(dist.Normal(randn(seed, 3, dtype=dtype), torch.tensor(1.5 + seed, dtype=dtype)))


def _multivariate_normal(dtype: torch.dtype, seed: int) -> Energy:
    covariance = _precision(seed + 1, 2, dtype=dtype)
    return DistributionEnergy(dist.MultivariateNormal(randn(seed, 2, dtype=dtype), covariance))


def _gamma(dtype: torch.dtype, seed: int) -> Energy:
    return DistributionEnergy(dist.Gamma(randn(seed, 2, dtype=dtype).exp(), nn.Parameter(torch.ones(2, dtype=dtype))))


def _dirichlet(dtype: torch.dtype, seed: int) -> Energy:
    return DistributionEnergy(dist.Dirichlet(nn.Parameter(randn(seed, 4, dtype=dtype).exp())))


def _transformed(dtype: torch.dtype, seed: int) -> Energy:
    base = dist.Normal(randn(seed, 3, dtype=dtype), torch.ones(3, dtype=dtype))
    scale = randn(seed + 1, 3, dtype=dtype).exp()
    return DistributionEnergy(
        dist.TransformedDistribution(
            base, [dist.AffineTransform(randn(seed + 2, 3, dtype=dtype), scale), dist.ExpTransform()]
        )
    )


def _log_normal(dtype: torch.dtype, seed: int) -> Energy:
    return DistributionEnergy(dist.LogNormal(randn(seed, dtype=dtype), torch.ones((), dtype=dtype)))


def _independent(dtype: torch.dtype, seed: int) -> Energy:
    normal = pyro_dist.Normal(randn(seed, 2, 3, dtype=dtype), torch.ones((), dtype=dtype))
    return DistributionEnergy(normal.to_event(1))


def _mixture_family(dtype: torch.dtype, seed: int) -> Energy:
    components = dist.Normal(randn(seed, 3, dtype=dtype), torch.ones(3, dtype=dtype))
    return DistributionEnergy(
        dist.MixtureSameFamily(dist.Categorical(logits=randn(seed + 1, 3, dtype=dtype)), components)
    )


def _flow(dtype: torch.dtype, seed: int) -> Energy:
    base = pyro_dist.Normal(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)).to_event(1)
    flow = seeded(lambda: flows.affine_coupling(2, [4]), dtype, seed)
    return DistributionEnergy(pyro_dist.TransformedDistribution(base, [flow]))


def _categorical(dtype: torch.dtype, seed: int) -> Energy:
    return DistributionEnergy(dist.Categorical(randn(seed, 4, dtype=dtype).softmax(-1)))


def _bernoulli(dtype: torch.dtype, seed: int) -> Energy:
    return DistributionEnergy(dist.Independent(dist.Bernoulli(logits=randn(seed, 3, dtype=dtype)), 1))


def _quadratic(dtype: torch.dtype, seed: int) -> Energy:
    linear = nn.Parameter(randn(seed + 1, 3, dtype=dtype))
    return QuadraticEnergy(nn.Parameter(_precision(seed, 3, dtype=dtype)), linear)


def _batched_quadratic(dtype: torch.dtype, seed: int) -> Energy:
    return QuadraticEnergy(_precision(seed, 4, 3, dtype=dtype), randn(seed + 1, 2, 4, 3, dtype=dtype))


def _batched_linear(dtype: torch.dtype, seed: int) -> Energy:
    return QuadraticEnergy(_precision(seed, 3, dtype=dtype), randn(seed + 1, 4, 3, dtype=dtype))


def _standardized(dtype: torch.dtype, seed: int) -> Energy:
    location, scale = randn(seed + 5, 3, dtype=dtype), randn(seed + 6, 3, dtype=dtype).exp()
    return StandardizedEnergy(_batched_quadratic(dtype, seed), location, scale)


def _joint(dtype: torch.dtype, seed: int) -> JointEnergy:
    return JointEnergy(seeded(lambda: nn.Linear(2, 3), dtype, seed), (2,), 3)


def _sum(dtype: torch.dtype, seed: int) -> Energy:
    return SumEnergy([_quadratic(dtype, seed), energy(quartic, (3,)), _batched_quadratic(dtype, seed + 2)])


def _sum_of_pairs(dtype: torch.dtype, seed: int) -> Energy:
    net = seeded(lambda: Coupling(torch.zeros(2, 3)), dtype, seed)
    return energy(net, [(2,), (3,)]) + 0.5 * energy(
        seeded(lambda: Coupling(torch.zeros(2, 3)), dtype, seed + 1), [(2,), (3,)]
    )


def _scaled(dtype: torch.dtype, seed: int) -> Energy:
    return 2.5 * _quadratic(dtype, seed)


def _scaled_by_batch(dtype: torch.dtype, seed: int) -> Energy:
    return ScaledEnergy(randn(seed, 4, dtype=dtype), _quadratic(dtype, seed + 1))


def _scaled_by_parameter(dtype: torch.dtype, seed: int) -> Energy:
    return ScaledEnergy(nn.Parameter(randn(seed, dtype=dtype)), energy(harmonic, (3,)))


def _mixture(dtype: torch.dtype, seed: int) -> Energy:
    return MixtureEnergy([_quadratic(dtype, seed), _quadratic(dtype, seed + 9)], torch.tensor([0.5, 2.0], dtype=dtype))


def _batched_mixture(dtype: torch.dtype, seed: int) -> Energy:
    weights = randn(seed, 4, 2, dtype=dtype).exp()
    return MixtureEnergy([_batched_linear(dtype, seed), energy(harmonic, (3,))], weights)


def _fixed(make: Callable[[], Energy]) -> Callable[[torch.dtype, int], Energy]:
    """A density without free parameters: every seed gives the same."""
    return lambda dtype, _: make().to(dtype)


def _batched_table(dtype: torch.dtype, seed: int) -> Energy:
    return TableEnergy(
        nn.Parameter(randn(seed, 4, 3, 2, dtype=dtype)), 2, support=[constraints.integer_interval(0, 2), spin]
    )


def _potts(dtype: torch.dtype, seed: int) -> Energy:
    return PottsEnergy(nn.Parameter(randn(seed, 2, 4, dtype=dtype)))


def _batched_bilinear(dtype: torch.dtype, seed: int) -> Energy:
    return BilinearEnergy(nn.Parameter(randn(seed, 4, 2, 3, dtype=dtype)))


def _rbm(*batch: int) -> Callable[[torch.dtype, int], Energy]:
    """A machine with all its parts at random; its parameters are learned."""
    shapes = [(4, 3), (4,), (3,)]
    return lambda dtype, seed: RBM.from_tensors(
        *(nn.Parameter(randn(10 * seed + k, *batch, *shape, dtype=dtype)) for k, shape in enumerate(shapes)),
        visible_offset=randn(10 * seed + 8, *batch, 4, dtype=dtype).sigmoid(),
        hidden_offset=randn(10 * seed + 9, *batch, 3, dtype=dtype).sigmoid(),
    )


def _graph(dtype: torch.dtype, seed: int) -> FactorGraph:
    g = FactorGraph()
    x = g.variable("x", num_states=3, shape=(2, 2))
    s = g.variable("s", support=spin, shape=(3,))
    g.factor(PottsEnergy(nn.Parameter(randn(seed, 2, dtype=dtype))), x[:, :-1], x[:, 1:])
    g.factor(IsingEnergy(randn(seed + 1, dtype=dtype)), s[torch.tensor([[0, 1], [2, 1]])])
    g.factor(TableEnergy(randn(seed + 2, 3, 2, dtype=dtype), support=[x.support.base_constraint, spin]), x[0, 1], s[2])
    g.factor(QuadraticEnergy(randn(seed + 3, 3, 3, dtype=dtype)), s)
    return g


def _conditioned_graph(dtype: torch.dtype, seed: int) -> Energy:
    """Two of the labels known, with a value of their own for each element of the batch."""
    known = torch.randint(3, (4, 2, 2), generator=torch.Generator().manual_seed(0))
    return _graph(dtype, seed).condition(x=(known, torch.tensor([[True, False], [True, False]])))


ENERGIES = [
    EnergyCase("neural", _neural(_perceptron, 2), ((2,),), (reals(2),)),
    EnergyCase("neural_image", _neural(_convolution, 1, 6, 6), ((1, 6, 6),), (reals(1, 6, 6),)),
    EnergyCase("neural_scalar", _neural(_scalar_net), ((),), (reals(),)),
    EnergyCase("neural_context", _conditional(), ((2,),), (reals(2),)),
    EnergyCase("neural_context_batch", _conditional(4), ((2,),), (reals(2),), (4,)),
    EnergyCase("neural_context_batches", _conditional(2, 4), ((2,),), (reals(2),), (2, 4)),
    EnergyCase("neural_level", _neural_levels(), ((2,),), (reals(2),)),
    EnergyCase("neural_levels", _neural_levels(4), ((2,),), (reals(2),), (4,)),
    EnergyCase("neural_levels_context", _conditional_levels, ((2,),), (reals(2),), (3, 4)),
    EnergyCase("levels_composed", _composed_levels, ((2,),), (reals(2),), (4,)),
    EnergyCase("function", lambda dtype, _: energy(harmonic, (3,)), ((3,),), (reals(3),)),
    EnergyCase("function_scalar", lambda dtype, _: energy(cosine, ()), ((),), (reals(),)),
    EnergyCase(
        "function_simplex",
        lambda dtype, _: FunctionEnergy(entropic, (3,), support=constraints.simplex),
        ((3,),),
        (simplices(3),),
    ),
    EnergyCase(
        "function_pair",
        lambda dtype, _: energy(spring, [(3,), ()], support=[constraints.real, constraints.positive]),
        ((3,), ()),
        (reals(3), positives()),
    ),
    EnergyCase(
        "function_module",
        lambda dtype, seed: energy(seeded(lambda: Coupling(torch.zeros(2, 3)), dtype, seed), [(2,), (3,)]),
        ((2,), (3,)),
        (reals(2), reals(3)),
    ),
    EnergyCase("normal", _normal, ((),), (reals(),), (3,)),
    EnergyCase("multivariate_normal", _multivariate_normal, ((2,),), (reals(2),)),
    EnergyCase("gamma", _gamma, ((),), (positives(),), (2,)),
    EnergyCase("dirichlet", _dirichlet, ((4,),), (simplices(4),)),
    EnergyCase("transformed", _transformed, ((),), (positives(),), (3,)),
    EnergyCase("log_normal", _log_normal, ((),), (positives(),)),
    EnergyCase("pyro_independent", _independent, ((3,),), (reals(3),), (2,)),
    EnergyCase("mixture_same_family", _mixture_family, ((),), (reals(),)),
    EnergyCase("flow", _flow, ((2,),), (reals(2),)),
    EnergyCase("categorical", _categorical, ((),), (integers(4),), discrete=True),
    EnergyCase("bernoulli", _bernoulli, ((3,),), (integers(2, 3),), discrete=True),
    EnergyCase("quadratic", _quadratic, ((3,),), (reals(3),)),
    EnergyCase("quadratic_batch", _batched_quadratic, ((3,),), (reals(3),), (2, 4)),
    EnergyCase("quadratic_linear_batch", _batched_linear, ((3,),), (reals(3),), (4,)),
    EnergyCase("sum", _sum, ((3,),), (reals(3),), (2, 4)),
    EnergyCase("sum_pair", _sum_of_pairs, ((2,), (3,)), (reals(2), reals(3))),
    EnergyCase("scaled", _scaled, ((3,),), (reals(3),)),
    EnergyCase("scaled_batch", _scaled_by_batch, ((3,),), (reals(3),), (4,)),
    EnergyCase("scaled_parameter", _scaled_by_parameter, ((3,),), (reals(3),)),
    EnergyCase("standardized", _standardized, ((3,),), (reals(3),), (2, 4)),
    EnergyCase("joint", _joint, ((2,), ()), (reals(2), integers(3))),
    EnergyCase("joint_marginal", lambda dtype, seed: _joint(dtype, seed).marginal(), ((2,),), (reals(2),)),
    EnergyCase("mixture", _mixture, ((3,),), (reals(3),)),
    EnergyCase("mixture_batch", _batched_mixture, ((3,),), (reals(3),), (4,)),
    EnergyCase(
        "table",
        lambda dtype, seed: TableEnergy(randn(seed, 2, 3, dtype=dtype)),
        ((), ()),
        (integers(2), integers(3)),
        discrete=True,
    ),
    EnergyCase("table_batch", _batched_table, ((), ()), (integers(3), spins()), (4,), discrete=True),
    EnergyCase("field", lambda dtype, seed: FieldEnergy(randn(seed, 4, dtype=dtype)), ((),), (spins(),), (4,)),
    EnergyCase("ising", lambda dtype, seed: IsingEnergy(randn(seed, dtype=dtype)), ((), ()), (spins(), spins())),
    EnergyCase("potts", _potts, ((), ()), (integers(3), integers(3)), (2, 4)),
    EnergyCase(
        "bilinear",
        lambda dtype, seed: BilinearEnergy(randn(seed, 2, 3, dtype=dtype)),
        ((2,), (3,)),
        (spins(2), spins(3)),
    ),
    EnergyCase("bilinear_batch", _batched_bilinear, ((2,), (3,)), (reals(2), reals(3)), (4,)),
    EnergyCase("sum_to_zero", lambda dtype, seed: SumToZeroEnergy(3, randn(seed, dtype=dtype)), ((3,),), (reals(3),)),
    EnergyCase("rbm", _rbm(), ((4,),), (integers(2, 4),), discrete=True),
    EnergyCase("rbm_batch", _rbm(2, 5), ((4,),), (integers(2, 4),), (2, 5), discrete=True),
    EnergyCase("graph", _graph, ((2, 2), (3,)), (integers(3, 2, 2), spins(3)), discrete=True),
    EnergyCase("graph_batch", _conditioned_graph, ((2,), (3,)), (integers(3, 2), spins(3)), (4,), discrete=True),
    EnergyCase("correlated_gaussian", lambda dtype, _: correlated_gaussian(3, 0.7, dtype=dtype), ((3,),), (reals(3),)),
    EnergyCase("double_well", _fixed(lambda: DoubleWell(2, barrier=2.0)), ((2,),), (reals(2),)),
    EnergyCase("ring", _fixed(lambda: Ring(1.0, 0.5)), ((2,),), (reals(2),)),
    EnergyCase("gaussian_mixture", _fixed(lambda: GaussianMixture(3, 2.0, 1.0)), ((2,),), (reals(2),)),
    EnergyCase("rosenbrock", _fixed(Rosenbrock), ((2,),), (reals(2),)),
    EnergyCase("funnel", _fixed(lambda: Funnel(3, 1.0)), ((3,),), (reals(3),)),
]
