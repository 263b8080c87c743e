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
from pyro_ebm.energies.quadratic import QuadraticEnergy
from pyro_ebm.energies.standardized import StandardizedEnergy
from pyro_ebm.energies.tabular import TableEnergy

__all__ = [
    "AnchorEnergy",
    "DifferenceEnergy",
    "BilinearEnergy",
    "Descent",
    "DistributionEnergy",
    "DoubleWell",
    "Energy",
    "FieldEnergy",
    "FunctionEnergy",
    "Funnel",
    "GaussianMixture",
    "IsingEnergy",
    "JointEnergy",
    "MixtureEnergy",
    "NeuralEnergy",
    "PottsEnergy",
    "QuadraticEnergy",
    "ReferenceEnergy",
    "Ring",
    "Rosenbrock",
    "ScaledEnergy",
    "StandardizedEnergy",
    "SumEnergy",
    "SumToZeroEnergy",
    "TableEnergy",
    "correlated_gaussian",
    "energy",
    "minimize",
    "mixture",
]
