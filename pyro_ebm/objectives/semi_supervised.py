"""The loss of a classifier that is a density too."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from pyro_ebm._core.protocols import HasLabels
from pyro_ebm.objectives.checks import positive
from pyro_ebm.objectives.objective import Objective, Report, Trained


class SemiSupervised(nn.Module):
    """An objective for all inputs, plus the cross-entropy of the labels that are known.

    `loss = objective(x) - weight E_labelled[log p(y | x)]`, for a distribution whose energy gives labels their
    probabilities: `EnergyDistribution(JointEnergy(...).marginal(), base)`. With the likelihood as objective, and all
    labels known, it is that of pairs, `-E[log p(x, y)]`. It is called as all objectives are, but that data are pairs.

    Args:
        objective: for the inputs.
        weight: of the cross-entropy.

    References:
        Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi and Swersky 2020, Your classifier is secretly an energy based model
        and you should treat it like one.

    >>> from pyro_ebm import EnergyDistribution, JointEnergy, NoiseContrastive
    >>> joint = JointEnergy(nn.Linear(2, 3), (2,), 3)
    >>> data = torch.randn(100, 2), torch.arange(100) % 4 - 1  # one in four has no label
    >>> loss, report = SemiSupervised(NoiseContrastive())(EnergyDistribution(joint.marginal()), data)
    >>> sorted(report)
    ['accuracy', 'cross_entropy', 'label_accuracy', 'log_partition', 'loss']
    """

    def __init__(self, objective: Objective, weight: float = 1.0) -> None:
        super().__init__()
        self.objective = objective
        self.weight = positive(weight, "SemiSupervised", "weight")

    def forward(
        self, distribution: Trained, data: tuple[Tensor, Tensor], *, generator: Generator | None = None
    ) -> tuple[Tensor, Report]:
        """The loss and what it tells, as `Objective` gives it.

        Args:
            distribution: its energy has `label_log_prob`.
            data: inputs `(N, *event)`, and labels `(N,)`, negative where they are not known.
            generator: of the objective's random numbers.

        Raises:
            TypeError: if the data are not a pair, or the energy knows nothing of labels.
        """
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise TypeError(
                f"SemiSupervised: got data of type {type(data).__name__}, expected a pair of inputs and labels. Give "
                "labels of -1 to inputs without one."
            )
        energy: object = getattr(distribution, "energy", None)
        if not isinstance(energy, HasLabels):
            raise TypeError(
                f"SemiSupervised: got an energy {type(energy).__name__}, expected one with label_log_prob(x). Use "
                "JointEnergy(network, event_shape, num_classes).marginal()."
            )
        inputs, labels = data
        loss, report = self.objective(distribution, inputs, generator=generator)
        known = labels >= 0
        if not bool(known.any()):
            return loss, {**report, "cross_entropy": loss.new_zeros(()), "label_accuracy": loss.new_zeros(())}
        log_prob = energy.label_log_prob(inputs[known])
        cross_entropy = nn.functional.nll_loss(log_prob, labels[known])
        accuracy = (log_prob.argmax(-1) == labels[known]).to(loss).mean()
        loss = loss + self.weight * cross_entropy
        return loss, {
            **report,
            "loss": loss.detach(),
            "cross_entropy": cross_entropy.detach(),
            "label_accuracy": torch.as_tensor(accuracy).detach(),
        }
