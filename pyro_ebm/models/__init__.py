"""Named special cases: most are short constructors of a factor graph."""

from pyro_ebm.models.gaussian_mrf import GaussianMRF
from pyro_ebm.models.icar import ICAR
from pyro_ebm.models.ising import Ising
from pyro_ebm.models.potts import Potts
from pyro_ebm.models.rbm import RBM
from pyro_ebm.models.spin_glass import SpinGlass

__all__ = ["ICAR", "RBM", "GaussianMRF", "Ising", "Potts", "SpinGlass"]
