"""Tells of walkers that stand still while the energy changes: what they say is then more and more by few of them."""

from dataclasses import dataclass

from pyro_ebm._core.errors import TrainingWarning
from pyro_ebm._core.warn import warn

# After so many refreshes running in which too few moves were accepted, walkers stand still.
_AFTER = 50


@dataclass
class Stillness:
    """Warns once, until they move again, where walkers stand still.

    Args:
        count: of refreshes running in which too few moves were accepted.
    """

    count: int = 0

    def note(self, owner: str, acceptance_rate: float, least: float) -> None:
        """Take note of a refresh.

        Args:
            owner: of the walkers, to name.
            acceptance_rate: of its moves.
            least: of which less is accepted only where walkers stand still.
        """
        self.count = self.count + 1 if acceptance_rate < least else 0
        if self.count == _AFTER:
            warn(
                f"{owner}: got {acceptance_rate:.1%} of the moves accepted, and in each of the last {_AFTER} refreshes "
                f"less than {least:.0%}, expected more: walkers stand still while the energy changes, so that few of "
                "them will come to count. Lower the learning rate, or let the optimizer decay the parameters, so that "
                "the energy stays smoother; move walkers more by num_steps; or, where states are discrete, give the "
                "energy a gibbs_step.",
                TrainingWarning,
            )
