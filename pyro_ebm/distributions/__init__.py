"""The seam to Pyro's distributions: energies as distributions and as factors."""

from pyro_ebm.distributions.energy_distribution import EnergyDistribution, Sampler
from pyro_ebm.distributions.factor import factor
from pyro_ebm.distributions.fitted_base import fitted_base
from pyro_ebm.distributions.graph_distribution import GraphDistribution
from pyro_ebm.distributions.grid_crf import GridCRF
from pyro_ebm.distributions.linear_chain_crf import LinearChainCRF
from pyro_ebm.distributions.normalizers import (
    ConditionalWalkers,
    Exact,
    Normalizer,
    PersistentChains,
    PersistentWalkers,
    ShortRun,
)
from pyro_ebm.distributions.probability_flow import ProbabilityFlow
from pyro_ebm.distributions.sample_graph import sample_graph
from pyro_ebm.distributions.structured import StructuredDistribution
from pyro_ebm.distributions.tilted import tilted
from pyro_ebm.distributions.tree_crf import TreeCRF

__all__ = [
    "ConditionalWalkers",
    "EnergyDistribution",
    "Exact",
    "GraphDistribution",
    "GridCRF",
    "LinearChainCRF",
    "Normalizer",
    "PersistentChains",
    "PersistentWalkers",
    "ProbabilityFlow",
    "Sampler",
    "ShortRun",
    "StructuredDistribution",
    "TreeCRF",
    "factor",
    "fitted_base",
    "sample_graph",
    "tilted",
]
