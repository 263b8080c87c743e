"""`TimeConditional`: a family of energies, one for each noise level, and the algebra of such families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError
from pyro_ebm._core.supports import is_everywhere, join_supports, with_event_dim
from pyro_ebm.energies.energy import Energy, ScaledEnergy, SumEnergy
from pyro_ebm.energies.noise_levels import checked_levels


class TimeConditional(nn.Module, ABC):
    """A family of energies `E(x, σ)` over one variable: at each noise level σ that of the data smoothed by `N(0, σ²)`.

    `family.at(σ)`, or `family(σ)`, is an ordinary `Energy`; levels of shape `(*batch,)` make a batch of energies, one
    for each. What learns it are `DenoisingScoreMatching` (score-based and diffusion models) and `RecoveryLikelihood`;
    what samples it are `sample_annealed`, `sample_recovery` and `ProbabilityFlow`.

    Families form the algebra of energies, level by level: `a + b`, `a - b`, `c * a`, `time_mixture([a, b])`, and
    `a + e` with an energy e that is the same at all levels (a constraint, a likelihood). **A sum of smoothed energies
    is not the energy of the smoothed product**, except as σ goes to 0: such a family is for `sample_annealed`, whose
    Metropolis correction makes each level right for itself (but for the masses of far modes: see there); a reverse
    diffusion of it (`ProbabilityFlow`) is wrong.
    Negative weights may leave nothing to normalise: then no sampler has an answer.

    A subclass defines `_at(sigma)`.

    Args:
        event_shape: the shape of one event.
        support: where events live; noise asks for all real numbers.

    References:
        Song and Ermon 2019, Generative modeling by estimating gradients of the data distribution.
        Du, Durkan, Strudel, Tenenbaum, Dieleman, Fergus, Sohl-Dickstein, Doucet and Grathwohl 2023, Reduce, reuse,
        recycle: compositional generation with energy-based diffusion models and MCMC.

    >>> import torch
    >>> from torch.distributions import Normal
    >>> from pyro_ebm import DistributionEnergy
    >>> family = time_conditional(lambda sigma: DistributionEnergy(Normal(0.0, (1 + sigma**2).sqrt())), ())
    >>> both = family + 2 * family
    >>> both.at(torch.tensor([0.1, 1.0])).batch_shape
    torch.Size([2])
    """

    event_shape: Size
    support: Constraint

    def __init__(self, event_shape: Sequence[int], *, support: Constraint = constraints.real) -> None:
        super().__init__()
        self.event_shape = Size(event_shape)
        self.support = with_event_dim(support, len(self.event_shape), type(self).__name__)

    @abstractmethod
    def _at(self, sigma: Tensor) -> Energy:
        """The energies at positive levels `(*batch,)`, of a batch shape to which that broadcasts."""

    def at(self, sigma: float | Tensor) -> Energy:
        """The energy at a noise level, or a batch of them.

        Args:
            sigma: positive, in the data's units, `(*batch,)`.

        Returns:
            An energy of batch shape `(*batch,)`, or what that and the family's own batch broadcast to.

        Raises:
            EnergyShapeError: if the energy is not over the family's events.
        """
        level = sigma if isinstance(sigma, Tensor) else like_of(self).new_tensor(sigma)
        found = self._at(level)
        if found.event_shapes != (self.event_shape,):
            raise EnergyShapeError(
                f"{type(self).__name__}.at: got an energy with event shapes {[tuple(s) for s in found.event_shapes]}, "
                f"expected the family's, {tuple(self.event_shape)}. Declare the family with the energies' event shape."
            )
        return found

    def forward(self, sigma: float | Tensor) -> Energy:
        """The same as `at`."""
        return self.at(sigma)

    def __add__(self, other: object) -> TimeConditional:
        if isinstance(other, (int, float)) and other == 0:  # the start of the builtin sum
            return self
        return SumTimeConditional([self, _lifted(other)]) if isinstance(other, (TimeConditional, Energy)) else _no()

    def __radd__(self, other: object) -> TimeConditional:
        return self + other

    def __sub__(self, other: object) -> TimeConditional:
        return self + -other if isinstance(other, (TimeConditional, Energy)) else _no()

    def __rsub__(self, other: object) -> TimeConditional:
        return -self + other

    def __neg__(self) -> TimeConditional:
        return ScaledTimeConditional(-1.0, self)

    def __mul__(self, weight: object) -> TimeConditional:
        return ScaledTimeConditional(weight, self) if isinstance(weight, (int, float, Tensor)) else _no()

    __rmul__ = __mul__

    def __truediv__(self, temperature: object) -> TimeConditional:
        return self * (1.0 / temperature) if isinstance(temperature, (int, float, Tensor)) else _no()


def _no() -> TimeConditional:
    """What an operator says to an operand that it does not take."""
    return cast(TimeConditional, NotImplemented)


class FunctionTimeConditional(TimeConditional):
    """A callable from a noise level to an energy, as a family: see `time_conditional`."""

    fn: Callable[[Tensor], Energy]

    def __init__(
        self,
        fn: Callable[[Tensor], Energy],
        event_shape: Sequence[int],
        *,
        support: Constraint = constraints.real,
    ) -> None:
        super().__init__(event_shape, support=support)
        self.fn = fn

    def _at(self, sigma: Tensor) -> Energy:
        return self.fn(sigma)


class SumTimeConditional(TimeConditional):
    """The sum `Σ_k E_k(x, σ)` of families, level by level; nested sums are flattened.

    Args:
        terms: families over the same events.

    Raises:
        EnergyShapeError: if event shapes differ.
        EnergySupportError: if supports differ.
    """

    terms: nn.ModuleList

    def __init__(self, terms: Sequence[TimeConditional]) -> None:
        flat: list[TimeConditional] = []
        for term in terms:
            flat += parts_of(term.terms) if isinstance(term, SumTimeConditional) else [term]
        super().__init__(shared_event_shape(flat, "SumTimeConditional"))
        self.support = join_supports([term.support for term in flat], "SumTimeConditional")
        self.terms = nn.ModuleList(flat)

    def _at(self, sigma: Tensor) -> Energy:
        return SumEnergy([term.at(sigma) for term in parts_of(self.terms)])


class ScaledTimeConditional(TimeConditional):
    """A multiple `c E(x, σ)` of a family: at each level the density at inverse temperature c.

    Args:
        weight: a number, or a tensor that broadcasts with the levels; a `Parameter` is learned.
        family: the family.
    """

    weight: float | Tensor

    def __init__(self, weight: float | Tensor, family: TimeConditional) -> None:
        super().__init__(family.event_shape)
        self.support = family.support
        if isinstance(weight, nn.Parameter):
            self.register_parameter("weight", weight)
        elif isinstance(weight, Tensor):
            self.register_buffer("weight", weight)
        else:
            self.weight = weight
        self.family = family

    def _at(self, sigma: Tensor) -> Energy:
        return ScaledEnergy(self.weight, self.family.at(sigma))


def _lifted(other: TimeConditional | Energy) -> TimeConditional:
    """An energy as the family that is the same at all levels."""
    if isinstance(other, TimeConditional):
        return other
    return FunctionTimeConditional(_Always(other), other.event_shape, support=other.support)


class _Always(nn.Module):
    def __init__(self, energy: Energy) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, sigma: Tensor) -> Energy:
        return self.energy


def parts_of(modules: nn.ModuleList) -> list[TimeConditional]:
    """The families in a list of modules."""
    return [cast(TimeConditional, each) for each in modules]


def shared_event_shape(families: Sequence[TimeConditional], what: str) -> Size:
    """The event shape of families.

    Raises:
        EnergyShapeError: if they have several, or there are no families.
    """
    shapes = {family.event_shape for family in families}
    if len(shapes) != 1:
        raise EnergyShapeError(
            f"{what}: got event shapes {sorted(tuple(s) for s in shapes)}, expected one for all of the families. "
            "Sum families of energies over the same events."
        )
    return shapes.pop()


def levels_for(family: TimeConditional, levels: Tensor, what: str) -> Tensor:
    """Checked levels, on the family's device, for what adds noise to its values.

    Raises:
        EnergySupportError: if the family is not over real numbers.
        ValueError: if the levels are not positive, or do not fall.
    """
    if not is_everywhere(family.support):
        raise EnergySupportError(
            f"{what}: got a family on {family.support}, expected one on real numbers, where noise can be added. Map "
            "the data there, with the energy's change of variables."
        )
    tensors = [*family.parameters(), *family.buffers()]
    checked = checked_levels(levels, what)
    return checked.to(tensors[0].device) if tensors else checked


def time_conditional(
    fn: Callable[[Tensor], Energy], event_shape: Sequence[int], *, support: Constraint = constraints.real
) -> FunctionTimeConditional:
    """Make a family of a callable from a noise level to an energy: for densities whose smoothed forms are known.

    Args:
        fn: from levels `(*batch,)` to an energy of that batch shape; an `nn.Module`'s parameters are the family's.
        event_shape: the shape of one event.
        support: where events live.

    >>> import torch
    >>> from pyro_ebm import QuadraticEnergy
    >>> family = time_conditional(lambda s: QuadraticEnergy(torch.eye(2) / (1 + s**2)[..., None, None]), (2,))
    >>> family.at(1.0)(torch.ones(2))
    tensor(0.5000)
    """
    return FunctionTimeConditional(fn, event_shape, support=support)
