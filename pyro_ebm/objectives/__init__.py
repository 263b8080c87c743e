"""Objectives: losses that train an energy, `objective(distribution, data) -> (loss, report)`, one in each file."""

from pyro_ebm.objectives.adaptive_noise_contrastive import AdaptiveNoiseContrastive
from pyro_ebm.objectives.concrete_score_matching import ConcreteScoreMatching
from pyro_ebm.objectives.conditional_noise_contrastive import ConditionalNoiseContrastive
from pyro_ebm.objectives.contrastive_divergence import ContrastiveDivergence
from pyro_ebm.objectives.denoising_score_matching import DenoisingScoreMatching
from pyro_ebm.objectives.discrete_energy_discrepancy import DiscreteEnergyDiscrepancy
from pyro_ebm.objectives.energy_discrepancy import EnergyDiscrepancy
from pyro_ebm.objectives.kernel_stein import KernelStein
from pyro_ebm.objectives.negative_log_likelihood import NegativeLogLikelihood
from pyro_ebm.objectives.noise_contrastive import NoiseContrastive
from pyro_ebm.objectives.objective import Objective
from pyro_ebm.objectives.perceptron import Perceptron
from pyro_ebm.objectives.persistent_contrastive_divergence import PersistentContrastiveDivergence
from pyro_ebm.objectives.pseudo_likelihood import PseudoLikelihood
from pyro_ebm.objectives.ranking_noise_contrastive import RankingNoiseContrastive
from pyro_ebm.objectives.ratio_matching import RatioMatching
from pyro_ebm.objectives.recovery_likelihood import RecoveryLikelihood
from pyro_ebm.objectives.score_matching import ScoreMatching
from pyro_ebm.objectives.semi_supervised import SemiSupervised
from pyro_ebm.objectives.sliced_score_matching import SlicedScoreMatching
from pyro_ebm.objectives.square_square import SquareSquare
from pyro_ebm.objectives.structured_hinge import StructuredHinge
from pyro_ebm.objectives.training import Training

__all__ = [
    "AdaptiveNoiseContrastive",
    "ConcreteScoreMatching",
    "ConditionalNoiseContrastive",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "DiscreteEnergyDiscrepancy",
    "EnergyDiscrepancy",
    "KernelStein",
    "NegativeLogLikelihood",
    "NoiseContrastive",
    "Objective",
    "Perceptron",
    "PersistentContrastiveDivergence",
    "PseudoLikelihood",
    "RankingNoiseContrastive",
    "RatioMatching",
    "RecoveryLikelihood",
    "ScoreMatching",
    "SemiSupervised",
    "SlicedScoreMatching",
    "SquareSquare",
    "StructuredHinge",
    "Training",
]
