"""A classifier as an energy of inputs and labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.shapes import broadcast, check_energy_shape, leading_shape
from pyro_ebm.energies.energy import Energy


class JointEnergy(Energy):
    """A classifier's logits f as an energy of an input and its label: `E(x, y) = -f(x)[y]`.

    So `p(y | x) = softmax f(x)`, as ever; what a classifier leaves open, what is added to all of f at each x, is the
    density of inputs: `E(x) = -logsumexp_y f(x)[y]`, the energy `marginal()`. Trained as both, by `SemiSupervised`, a
    classifier learns from inputs without labels, and tells which inputs are unlike any that it has seen.

    Args:
        network: maps `(N, *event)` to logits `(N, num_classes)`.
        event_shape: of an input.
        num_classes: labels are 0, ..., num_classes - 1.
        support: where inputs live.

    Raises:
        EnergyShapeError: at a call, if the network returns another shape.
        ValueError: if there are less than two classes.

    References:
        Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi and Swersky 2020, Your classifier is secretly an energy based model
        and you should treat it like one.

    >>> import torch
    >>> joint = JointEnergy(nn.Linear(2, 3), (2,), 3)
    >>> x = torch.randn(5, 2)
    >>> joint.predict(x).shape, joint.marginal()(x).shape, joint(x, torch.tensor(0)).shape
    (torch.Size([5]), torch.Size([5]), torch.Size([5]))
    """

    def __init__(
        self,
        network: nn.Module,
        event_shape: Sequence[int],
        num_classes: int,
        *,
        support: Constraint = constraints.real,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"JointEnergy: got num_classes={num_classes}, expected at least 2.")
        super().__init__([tuple(event_shape), ()], support=[support, constraints.integer_interval(0, num_classes - 1)])
        self.network = network
        self.num_classes = num_classes

    def logits(self, x: Tensor) -> Tensor:
        """The network's output at `(*sample, *event)`, `(*sample, num_classes)`."""
        event_shape = self.event_shapes[0]
        lead = leading_shape(x, event_shape, "JointEnergy")
        output: Tensor = self.network(x.reshape(-1, *event_shape))
        if output.shape != (lead.numel(), self.num_classes):
            raise EnergyShapeError(
                f"JointEnergy: the network returned shape {tuple(output.shape)}, expected (N, num_classes) = "
                f"{(lead.numel(), self.num_classes)}. End it with a layer of {self.num_classes} outputs."
            )
        return output.reshape(*lead, self.num_classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """The energy of inputs `(*sample, *event)` with labels that broadcast to `(*sample,)`, `(*sample,)`."""
        logits = self.logits(x)
        lead = broadcast([Size(logits.shape[:-1]), label.shape], "JointEnergy")
        index = label.long().expand(lead).unsqueeze(-1)
        return -logits.expand(*lead, -1).gather(-1, index).squeeze(-1)

    def label_log_prob(self, x: Tensor) -> Tensor:
        """`log p(y | x)` at `(*sample, *event)`, `(*sample, num_classes)`."""
        return self.logits(x).log_softmax(-1)

    def predict(self, x: Tensor) -> Tensor:
        """The most likely labels at `(*sample, *event)`, `(*sample,)`."""
        return self.logits(x).argmax(-1)

    def marginal(self) -> MarginalEnergy:
        """The energy of inputs alone, which shares the network."""
        return MarginalEnergy(self)

    def given(self, label: Tensor) -> LabelledEnergy:
        """The energy of inputs with labels `(*batch,)`, a batch of energies that share the network."""
        return LabelledEnergy(self, label)


class MarginalEnergy(Energy):
    """`E(x) = -logsumexp_y f(x)[y]`: inputs of any class.

    Args:
        joint: the energy with labels.
    """

    def __init__(self, joint: JointEnergy) -> None:
        super().__init__(joint.event_shapes[0], support=joint.supports[0])
        self.joint = joint

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *event)`, `(*sample,)`."""
        return -self.joint.logits(x).logsumexp(-1)

    def label_log_prob(self, x: Tensor) -> Tensor:
        """See `JointEnergy`."""
        return self.joint.label_log_prob(x)


class LabelledEnergy(Energy):
    """`E(x) = -f(x)[y]`: inputs of given classes.

    Args:
        joint: the energy with labels.
        label: `(*batch,)`.
    """

    label: Tensor

    def __init__(self, joint: JointEnergy, label: Tensor) -> None:
        super().__init__(joint.event_shapes[0], support=joint.supports[0], batch_shape=label.shape)
        self.joint = joint
        self._hold(label=label)

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        lead = broadcast([leading_shape(x, self.event_shape, "LabelledEnergy"), self.batch_shape], "LabelledEnergy")
        energy: Tensor = self.joint(x.expand(*lead, *self.event_shape), self.label)
        return check_energy_shape(energy, lead, "LabelledEnergy")
