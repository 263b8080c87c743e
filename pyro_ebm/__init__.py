"""Energy-based models in Pyro: declare, compose, learn and sample energies `p(x) ∝ exp(-E(x))`."""

__version__ = "0.1.0"

from pyro_ebm.distributions import *  # noqa: F403
from pyro_ebm.energies import *  # noqa: F403
from pyro_ebm.infer import *  # noqa: F403
