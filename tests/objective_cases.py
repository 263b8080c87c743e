"""The table of objectives, and what they are tried on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import randn
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from pyro_ebm import (
    AdaptiveNoiseContrastive,
    ConcreteScoreMatching,
    ConditionalNoiseContrastive,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    DiscreteEnergyDiscrepancy,
    EnergyDiscrepancy,
    EnergyDistribution,
    FactorGraph,
    Ising,
    KernelStein,
    NegativeLogLikelihood,
    NoiseContrastive,
    Objective,
    Perceptron,
    PersistentContrastiveDivergence,
    PseudoLikelihood,
    QuadraticEnergy,
    RankingNoiseContrastive,
    RatioMatching,
    RecoveryLikelihood,
    ScoreMatching,
    SlicedScoreMatching,
    SquareSquare,
    StructuredHinge,
    TableEnergy,
)

REAL, SPIN, LABEL = "real", "spin", "label"


@dataclass(frozen=True)
class ObjectiveCase:
    """An objective, the domains that it takes, whether it draws random numbers, and
    whether it takes energy distributions alone."""

    name: str
    make: Callable[[], Objective]
    domains: tuple[str, ...]
    random: bool = False
    structured: bool = False
    needs_energy: bool = False


def distribution(
    domain: str, dtype: torch.dtype = torch.float64, batch: tuple[int, ...] = (), seed: int = 0
) -> EnergyDistribution:
    """A density with parameters to be learned: over 3 real numbers, 2x3 spins or 4 labels of 3 values."""
    if domain == REAL:
        root = torch.eye(3, dtype=dtype) + 0.2 * randn(seed, *batch, 3, 3, dtype=dtype)
        linear = 0.3 * randn(seed + 1, *batch, 3, dtype=dtype)
        return EnergyDistribution(QuadraticEnergy(nn.Parameter(root @ root.mT), nn.Parameter(linear)))
    if domain == SPIN:
        coupling = nn.Parameter(0.4 * randn(seed, *batch, 7, dtype=dtype))
        field = nn.Parameter(0.3 * randn(seed + 1, *batch, 6, dtype=dtype))
        return EnergyDistribution(Ising((2, 3), coupling, field))
    graph = FactorGraph()
    x = graph.variable("x", num_states=3, shape=(4,))
    graph.factor(TableEnergy(nn.Parameter(0.5 * randn(seed, *batch, 3, 3, 3, dtype=dtype)), arity=2), x[:-1], x[1:])
    graph.factor(TableEnergy(nn.Parameter(0.5 * randn(seed + 1, *batch, 4, 3, dtype=dtype)), arity=1), x[:])
    return EnergyDistribution(graph)


def data(domain: str, *lead: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    """Data of a domain, `(*lead, *event)`."""
    if domain == REAL:
        return randn(seed, *lead, 3, dtype=dtype) + 0.5
    drawn = randn(seed, *lead, *((2, 3) if domain == SPIN else (4,)))
    return (drawn > 0.3).to(dtype) * 2 - 1 if domain == SPIN else (drawn.abs() * 1.5).long().clamp(max=2)


def given_noise() -> NoiseContrastive:
    return NoiseContrastive(
        MultivariateNormal(torch.zeros(3, dtype=torch.float64), 2 * torch.eye(3, dtype=torch.float64))
    )


def learned_noise(adversarial: bool) -> AdaptiveNoiseContrastive:
    location = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
    return AdaptiveNoiseContrastive(Independent(Normal(location, scale), 1), 4, adversarial=adversarial)


OBJECTIVES = [
    ObjectiveCase("nce", lambda: NoiseContrastive(num_noise=4), (REAL, SPIN, LABEL), True),
    ObjectiveCase("nce_given", given_noise, (REAL,), True),
    ObjectiveCase("nce_adaptive", lambda: learned_noise(False), (REAL,), True),
    ObjectiveCase("nce_adversarial", lambda: learned_noise(True), (REAL,), True),
    ObjectiveCase("ranking", RankingNoiseContrastive, (REAL, SPIN, LABEL), True),
    ObjectiveCase("cnce", ConditionalNoiseContrastive, (REAL,), True),
    ObjectiveCase("cd", ContrastiveDivergence, (REAL, SPIN, LABEL), True, needs_energy=True),
    ObjectiveCase("pcd", lambda: PersistentContrastiveDivergence(50), (REAL, SPIN, LABEL), True, needs_energy=True),
    ObjectiveCase("score_matching", ScoreMatching, (REAL,)),
    ObjectiveCase("score_matching_probes", lambda: ScoreMatching(num_probes=2), (REAL,), True),
    ObjectiveCase("sliced", SlicedScoreMatching, (REAL,), True),
    ObjectiveCase("sliced_plain", lambda: SlicedScoreMatching(2, variance_reduced=False), (REAL,), True),
    ObjectiveCase("denoising", DenoisingScoreMatching, (REAL,), True),
    ObjectiveCase("recovery", lambda: RecoveryLikelihood([1.0, 0.3], num_steps=3), (REAL,), True),
    ObjectiveCase("energy_discrepancy", EnergyDiscrepancy, (REAL,), True),
    ObjectiveCase("discrete_energy_discrepancy", DiscreteEnergyDiscrepancy, (SPIN, LABEL), True),
    ObjectiveCase("kernel_stein", KernelStein, (REAL,)),
    ObjectiveCase("kernel_stein_rbf", lambda: KernelStein("rbf", 1.5), (REAL,)),
    ObjectiveCase("pseudo_likelihood", PseudoLikelihood, (SPIN, LABEL)),
    ObjectiveCase("ratio_matching", RatioMatching, (SPIN,)),
    ObjectiveCase("concrete_score", ConcreteScoreMatching, (SPIN, LABEL)),
    ObjectiveCase("perceptron", Perceptron, (SPIN, LABEL), structured=True),
    ObjectiveCase("structured_hinge", StructuredHinge, (SPIN, LABEL), structured=True),
    ObjectiveCase("square_square", lambda: SquareSquare(margin=4.0), (SPIN, LABEL), structured=True),
    ObjectiveCase("likelihood", NegativeLogLikelihood, (REAL, SPIN, LABEL)),
]

PAIRS = [(case, domain) for case in OBJECTIVES for domain in case.domains]
PAIR_NAMES = [f"{case.name}-{domain}" for case, domain in PAIRS]
