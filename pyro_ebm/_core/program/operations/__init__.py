"""How the operations that are not elementwise are lowered, a file for each kind; importing them registers them."""

from pyro_ebm._core.program.operations import callbacks as callbacks
from pyro_ebm._core.program.operations import elementwise as elementwise
from pyro_ebm._core.program.operations import indexing as indexing
from pyro_ebm._core.program.operations import joins as joins
from pyro_ebm._core.program.operations import linear_algebra as linear_algebra
from pyro_ebm._core.program.operations import reductions as reductions
from pyro_ebm._core.program.operations import views as views
