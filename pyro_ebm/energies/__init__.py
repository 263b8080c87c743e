"""Energies `E(x)`, each defining `p(x) ∝ exp(-E(x))`, and their algebra."""

from pyro_ebm.energies.densities import (
    DoubleWell,
    Funnel,
    GaussianMixture,
    ReferenceEnergy,
    Ring,
    Rosenbrock,
    correlated_gaussian,
)
from pyro_ebm.energies.energy import Energy, ScaledEnergy, SumEnergy
from pyro_ebm.energies.from_distribution import DistributionEnergy
from pyro_ebm.energies.function import FunctionEnergy, energy
from pyro_ebm.energies.interactions import (
    AnchorEnergy,
    BilinearEnergy,
    DifferenceEnergy,
    FieldEnergy,
    IsingEnergy,
    PottsEnergy,
    SumToZeroEnergy,
)
from pyro_ebm.energies.joint import JointEnergy
from pyro_ebm.energies.minimize import Descent, minimize
from pyro_ebm.energies.mixture import MixtureEnergy, mixture
from pyro_ebm.energies.neural import NeuralEnergy
from pyro_ebm.energies.neural_time_conditional import NeuralTimeConditional
from pyro_ebm.energies.noise_levels import log_uniform, noise_levels
from pyro_ebm.energies.quadratic import QuadraticEnergy
from pyro_ebm.energies.standardized import StandardizedEnergy
from pyro_ebm.energies.tabular import TableEnergy
from pyro_ebm.energies.time_conditional import (
    FunctionTimeConditional,
    ScaledTimeConditional,
    SumTimeConditional,
    TimeConditional,
    time_conditional,
)
from pyro_ebm.energies.time_mixture import MixtureTimeConditional, time_mixture

__all__ = [
    "AnchorEnergy",
    "BilinearEnergy",
    "Descent",
    "DifferenceEnergy",
    "DistributionEnergy",
    "DoubleWell",
    "Energy",
    "FieldEnergy",
    "FunctionEnergy",
    "FunctionTimeConditional",
    "Funnel",
    "GaussianMixture",
    "IsingEnergy",
    "JointEnergy",
    "MixtureEnergy",
    "MixtureTimeConditional",
    "NeuralEnergy",
    "NeuralTimeConditional",
    "PottsEnergy",
    "QuadraticEnergy",
    "ReferenceEnergy",
    "Ring",
    "Rosenbrock",
    "ScaledEnergy",
    "ScaledTimeConditional",
    "StandardizedEnergy",
    "SumEnergy",
    "SumTimeConditional",
    "SumToZeroEnergy",
    "TableEnergy",
    "TimeConditional",
    "correlated_gaussian",
    "energy",
    "log_uniform",
    "minimize",
    "mixture",
    "noise_levels",
    "time_conditional",
    "time_mixture",
]
