"""Negatives: values that chains of the density itself come to, to be held against data."""

from __future__ import annotations

from typing import cast

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.randomness import seeded
from pyro_ebm.mcmc.moves import EnergyDensity, Tuning, move_for
from pyro_ebm.objectives.data import log_density
from pyro_ebm.objectives.fitted import Fitted
from pyro_ebm.objectives.objective import Report, Trained


class Chains(Fitted):
    """Moves of chains, whose tuning follows the density from call to call.

    They are at temperature one: Metropolis-adjusted Langevin where the density is continuous; where it is discrete its
    energy's own Gibbs step, or Gibbs with gradients.
    """

    log_step_size: Tensor | None
    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__("log_step_size", "scale")

    def forward(
        self, density: EnergyDensity, value: Tensor, num_steps: int | None, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Where chains are after some steps, and their acceptance.

        Args:
            density: what they sample.
            value: where they start, `(*sample, *batch, *event)`.
            num_steps: by default what is usual for the move.
            generator: of the random numbers.

        Returns:
            Values of the same shape, and the acceptance rate, `()`.
        """
        batch, event = density.batch_shape, density.event_shape
        with torch.no_grad():
            move = move_for(density)
            if self.scale is None or self.log_step_size is None:
                first = move.tune(value.reshape(-1, *event))
                self.log_step_size, self.scale = first.log_step_size, first.scale
            chains = value.reshape(-1, *batch, *event)
            scale = self.scale.expand(batch + self.scale.shape)
            tuning = Tuning(self.log_step_size.expand(batch), scale)
            steps = num_steps or move.usual_steps
            # Moves take any generator that torch takes, none included.
            own = cast(Generator, generator)
            moved = move(density.unnormalized_log_prob, chains, tuning, own, num_steps=steps)
            self.log_step_size = moved.tuning.log_step_size.mean()
            return moved.value.reshape(value.shape), moved.acceptance_rate.mean()


def as_energy_density(distribution: Trained, what: str) -> EnergyDensity:
    """A distribution that chains can sample.

    Raises:
        TypeError: if it is none.
    """
    if not (hasattr(distribution, "energy") and hasattr(distribution, "unnormalized_log_prob")):
        raise TypeError(
            f"{what}: got {type(distribution).__name__}, expected an EnergyDistribution, which chains can sample. Wrap "
            "an energy with EnergyDistribution(energy, base)."
        )
    return cast(EnergyDensity, distribution)


def contrast(density: EnergyDensity, data: Tensor, negatives: Tensor, acceptance: Tensor) -> tuple[Tensor, Report]:
    """The loss `E_data[E(x)] - E_negatives[E(x)]`, bases taken in, and the report."""
    at_data = log_density(density, data, "data").mean()
    at_negatives = log_density(density, negatives, "noise").mean()
    return at_negatives - at_data, {"energy_gap": at_negatives - at_data, "acceptance_rate": acceptance}


def base_draws(density: EnergyDensity, shape: Size, generator: Generator | None, what: str) -> Tensor:
    """Draws of the base, `(*shape, *event)`, where the shape ends in the batch shape.

    Raises:
        ValueError: if there is no base.
    """
    if density.base is None:
        raise ValueError(
            f"{what}: got a density without a base, expected one to start chains from. Give a base, "
            "EnergyDistribution(energy, base)."
        )
    count = len(shape) - len(density.batch_shape)
    device = next((each.device for each in density.energy.parameters()), torch.device("cpu"))
    with torch.no_grad(), seeded(generator, device):
        draws: Tensor = density.base.expand(density.batch_shape).sample(shape[:count])
        return draws
