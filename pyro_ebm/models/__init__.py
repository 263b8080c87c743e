"""Named special cases: each a short constructor of a factor graph."""

from pyro_ebm.models.gaussian_mrf import GaussianMRF
from pyro_ebm.models.icar import ICAR
from pyro_ebm.models.ising import Ising
from pyro_ebm.models.potts import Potts
from pyro_ebm.models.spin_glass import SpinGlass

__all__ = ["ICAR", "GaussianMRF", "Ising", "Potts", "SpinGlass"]
