"""`EnergyDistribution`: an energy as a Pyro distribution."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import (
    EnergyShapeError,
    EnergySupportError,
    GraphError,
    SharedNormalizerError,
    TreewidthError,
)
from pyro_ebm._core.protocols import HasExactDraws
from pyro_ebm._core.shapes import broadcast, check_energy_shape, leading_shape
from pyro_ebm._core.supports import enumerable_states, enumerate_states, same_support, with_event_dim
from pyro_ebm.distributions._caller import only_shape_needed
from pyro_ebm.distributions._legality import check_site, check_unnormalized
from pyro_ebm.distributions.base_density import base_log_prob
from pyro_ebm.distributions.default_sampler import enumerated_sample, init_sample, run_sample
from pyro_ebm.distributions.normalizers.exact import Exact
from pyro_ebm.distributions.normalizers.normalizer import HasDraws, Normalizer
from pyro_ebm.energies import Energy
from pyro_ebm.graphs import FactorGraph


class Sampler(Protocol):
    """A callable that draws from an energy distribution."""

    def __call__(self, distribution: EnergyDistribution, sample_shape: Size, /) -> Tensor:
        """Draws `(*sample, *batch, *event)`."""
        ...


class EnergyDistribution(TorchDistribution):  # type: ignore[misc]
    """The density `p(x) = base(x) exp(-E(x)) / Z`, as a Pyro distribution.

    `log_prob(x) = base.log_prob(x) - E(x) - log Z` in nats; without a `log_normalizer` the last term is left out, and
    `is_normalized` is false. An unnormalised density is right wherever log Z is a constant: in the posterior by HMC,
    NUTS or SVI, as long as the energy depends on nothing that is learned or sampled but its own argument. Where it is
    not, Pyro's inference raises `UnnormalizedError` instead of going wrong silently.

    Args:
        energy: an energy over one variable.
        base: a distribution with the same event shape: it gives the support, starting points and, if it is proper,
            integrability. `None` is the flat measure on `energy.support`.
        log_normalizer: log Z: nothing, a tensor that broadcasts with the batch shape (`energy.log_partition()`, where
            there is one), or a `Normalizer`.
        sampler: what `.sample()` calls, as `sampler(distribution, sample_shape)`. By default exact draws where the
            energy has them or its states can be enumerated, else a short adapted NUTS run with a chain for each draw.
        validate_args: whether values are checked; torch's default.

    Attributes:
        energy: the energy.
        base: the base, or `None`.

    Raises:
        EnergyShapeError: if event or batch shapes do not fit.
        EnergySupportError: if the base lives where the energy is not defined.

    >>> import pyro
    >>> from pyro_ebm import DoubleWell
    >>> prior = EnergyDistribution(DoubleWell(dim=2))
    >>> def model():
    ...     z = pyro.sample("z", prior)
    ...     return pyro.sample("x", pyro.distributions.Normal(z, 0.1).to_event(1))
    >>> prior.log_prob(torch.zeros(5, 2)).shape, prior.is_normalized
    (torch.Size([5]), False)
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (torch's own declaration)
    has_rsample = False

    energy: Energy
    base: Distribution | None

    def __init__(
        self,
        energy: Energy,
        base: Distribution | None = None,
        *,
        log_normalizer: Tensor | Normalizer | None = None,
        sampler: Sampler | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(energy, Energy):
            raise TypeError(
                f"EnergyDistribution: got {type(energy).__name__}, expected an Energy. "
                "Wrap a callable with energy(fn, event_shape=...), a distribution with DistributionEnergy(...)."
            )
        if base is not None and base.event_shape != energy.event_shape:
            raise EnergyShapeError(
                f"EnergyDistribution: got a base with event shape {tuple(base.event_shape)}, expected the energy's "
                f"{tuple(energy.event_shape)}. Turn batch dims into event dims with base.to_event(n)."
            )
        if not (
            log_normalizer is None or isinstance(log_normalizer, Tensor) or hasattr(log_normalizer, "log_normalizer")
        ):
            raise TypeError(
                f"EnergyDistribution: got a {type(log_normalizer).__name__} as log_normalizer, expected a tensor, or "
                "an object with a method log_normalizer(distribution). Wrap a number with torch.tensor(...)."
            )
        self.energy, self.base, self.sampler = energy, base, sampler
        self._log_normalizer = log_normalizer
        self._origin: EnergyDistribution | None = None
        self._support = energy.support if base is None else _base_support(base, energy)
        shapes = [energy.batch_shape]
        if base is not None:
            shapes.append(base.batch_shape)
        if isinstance(log_normalizer, Tensor):
            shapes.append(log_normalizer.shape)
            _check_shared(log_normalizer, energy)
        super().__init__(broadcast(shapes, "EnergyDistribution"), energy.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> EnergyDistribution:
        """The same density for a larger batch; energy, base, log Z and sampler are shared, not copied."""
        new: EnergyDistribution = self._get_checked_instance(EnergyDistribution, _instance)
        batch_shape = Size(batch_shape)
        extra = len(batch_shape) - len(self.batch_shape)
        if extra < 0 or any(
            old not in (1, size) for old, size in zip(self.batch_shape, batch_shape[extra:], strict=True)
        ):
            raise EnergyShapeError(
                f"EnergyDistribution.expand: got batch shape {tuple(self.batch_shape)}, expected one that expands to "
                f"{tuple(batch_shape)}. Under a subsampled plate, index parameters and covariates by the plate's "
                "indices."
            )
        new.energy, new.base, new.sampler = self.energy, self.base, self.sampler
        new._log_normalizer, new._support, new._origin = self._log_normalizer, self._support, self.root
        super(EnergyDistribution, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def root(self) -> EnergyDistribution:
        """The distribution as it was constructed, which owns log Z; not kept by itself, for cycles are hard to walk."""
        return self if self._origin is None else self._origin

    @constraints.dependent_property
    def support(self) -> Constraint:
        """Where the density lives: the base's support, or the energy's."""
        return self._support

    @property
    def is_normalized(self) -> bool:
        """Whether `log_prob` has log Z in it."""
        return self._log_normalizer is not None

    @property
    def log_normalizer(self) -> Tensor | Normalizer | None:
        """What supplies log Z, as it was given."""
        return self._log_normalizer

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        """`base.log_prob(x) - E(x)` at `(*sample, *batch, *event)`, `(*sample, *batch)`.

        Nothing is checked but shapes.
        """
        what = f"EnergyDistribution({type(self.energy).__name__})"
        lead = leading_shape(value, self.event_shape, what)
        expected = broadcast([lead, self.energy.batch_shape], what)
        energy = check_energy_shape(self.energy(value), expected, what)
        log_prob = -energy if self.base is None else base_log_prob(self.base, value) - energy
        return log_prob.expand(broadcast([lead, self.batch_shape], what))

    def log_prob(self, value: Tensor) -> Tensor:
        """`base.log_prob(x) - E(x) - log Z` in nats.

        Args:
            value: `(*sample, *batch, *event)`.

        Returns:
            `(*sample, *batch)`.

        Raises:
            EnergyShapeError: if the energy does not reduce just the event dims.
            TwoDensitiesError: when Pyro scores an observed site with the value of another site.
            GuideEnergyError: when Pyro scores a guide's site, and there is no exact log Z.
            EnumeratedContextError: when Pyro scores a site without log Z for the values of an enumerated site.
            UnnormalizedError: when Pyro scores a site without log Z, and log Z depends on what is learned or sampled.
        """
        if self._validate_args:
            self._validate_sample(value)
        normalizer = self._log_normalizer
        exact = isinstance(normalizer, Tensor | Exact)
        check_site(self.root.batch_shape, len(self.event_shape), exact=exact, has_log_normalizer=self.is_normalized)
        log_prob = self.unnormalized_log_prob(value)
        if normalizer is None:
            check_unnormalized(log_prob, (value,))
            return log_prob
        return log_prob - (normalizer if isinstance(normalizer, Tensor) else normalizer.log_normalizer(self.root))

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008  (torch's signature)
        """Draws `(*sample, *batch, *event)`, detached.

        Where Pyro asks for a draw only to learn its shape (setting up a kernel, a guide or a predictive), it gets a
        point of the support at no cost.

        Raises:
            EnergySupportError: if there is no default sampler for the support: give one.
            InitializationError: if the density is not finite where the default sampler starts.
            EnergyShapeError: if the sampler given returns the wrong shape.
        """
        sample_shape = Size(sample_shape)
        with torch.inference_mode(False), torch.no_grad():
            if self.shape(sample_shape).numel() == 0:
                return like_of(self.energy).new_empty(self.shape(sample_shape))
            if only_shape_needed():
                try:
                    return init_sample(self, self.base, sample_shape, like_of(self.energy))
                except EnergySupportError:
                    if self.sampler is None:
                        raise
            if self.sampler is not None:
                draws = self.sampler(self, sample_shape)
                if draws.shape != self.shape(sample_shape):
                    raise EnergyShapeError(
                        f"EnergyDistribution.sample: the sampler returned shape {tuple(draws.shape)}, expected "
                        f"(*sample, *batch, *event) = {tuple(self.shape(sample_shape))}."
                    )
                return draws.detach()
            exact = self._exact_sample(sample_shape)
            if exact is not None:
                return exact
            extra = len(self.batch_shape) - len(self.root.batch_shape)
            normalizer: object = self._log_normalizer
            if isinstance(normalizer, HasDraws) and self.batch_shape[extra:] == self.root.batch_shape:
                return normalizer.draw(self.root, sample_shape + self.batch_shape[:extra])
            if self.has_enumerate_support:
                return enumerated_sample(self, sample_shape)
            return run_sample(self, self.base, sample_shape, like_of(self.energy))

    def exact_sample(self, sample_shape: Size = Size()) -> Tensor | None:  # noqa: B008  (torch's signature)
        """Draws `(*sample, *batch, *event)` without error: the energy's own, or by enumeration; `None` if none."""
        with torch.inference_mode(False), torch.no_grad():
            exact = self._exact_sample(sample_shape)
            return enumerated_sample(self, sample_shape) if exact is None and self.has_enumerate_support else exact

    def _exact_sample(self, sample_shape: Size) -> Tensor | None:
        """Draws by the energy itself, if it has any for this batch and base."""
        energy: object = self.energy
        extra = len(self.batch_shape) - len(self.energy.batch_shape)
        if self.base is not None or self.batch_shape[extra:] != self.energy.batch_shape:
            return None
        shape = sample_shape + self.batch_shape[:extra]
        if isinstance(energy, FactorGraph):
            try:
                (draws,) = energy.sample(shape).values()
            except (GraphError, TreewidthError):
                return None
            return draws
        return energy.sample(shape) if isinstance(energy, HasExactDraws) else None

    @property
    def has_enumerate_support(self) -> bool:
        """Whether the support is finite, with at most 2**16 states."""
        return enumerable_states(self._support, self.event_shape) is not None

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All states, `(states, *batch, *event)`, or with ones for the batch if not to be expanded."""
        if not self.has_enumerate_support:
            raise NotImplementedError(
                f"EnergyDistribution: got support {self._support} over event shape {tuple(self.event_shape)}, "
                "expected a finite one with at most 65536 joint states. Sample it instead."
            )
        like = like_of(self.energy)
        states = enumerate_states(self._support, self.event_shape, like.dtype, like.device)
        states = states.reshape(-1, *[1] * len(self.batch_shape), *self.event_shape)
        return states.expand(-1, *self.batch_shape, *self.event_shape) if expand else states

    def __repr__(self) -> str:
        """Name the energy, the base and the shapes."""
        base = "" if self.base is None else f", base={type(self.base).__name__}"
        return (
            f"EnergyDistribution({type(self.energy).__name__}{base}, batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)}, is_normalized={self.is_normalized})"
        )


def energy_distribution_of(distribution: Distribution) -> EnergyDistribution | None:
    """The energy distribution inside of one that is masked, or has its batch dims as event dims, if there is one."""
    inside: object = distribution
    while not isinstance(inside, EnergyDistribution):
        if not hasattr(inside, "base_dist"):
            return None
        inside = inside.base_dist
    return inside


def _check_shared(log_normalizer: Tensor, energy: Energy) -> None:
    """Raise where one log Z is given to a batch of energies, which each have their own."""
    batch = energy.batch_shape
    if batch.numel() > 1 and log_normalizer.numel() == 1:
        raise SharedNormalizerError(
            f"EnergyDistribution: got one log Z, of shape {tuple(log_normalizer.shape)}, for energies of batch shape "
            f"{tuple(batch)}, expected one for each: it depends on their parameters and contexts. Give a tensor of "
            "that shape (if they are all equal: log_normalizer.expand(...)), or a normaliser."
        )


def _base_support(base: Distribution, energy: Energy) -> Constraint:
    if base.support is None:
        raise EnergySupportError(
            f"EnergyDistribution: got a base {type(base).__name__} without a support, expected one that says where it "
            "lives. Leave the base out, and declare the energy on its support (support=...)."
        )
    support = with_event_dim(base.support, len(energy.event_shape), "EnergyDistribution")
    everywhere = with_event_dim(constraints.real, len(energy.event_shape), "EnergyDistribution")
    if not same_support(energy.support, support) and not same_support(energy.support, everywhere):
        raise EnergySupportError(
            f"EnergyDistribution: got a base on {support} and an energy on {energy.support}, expected one defined on "
            "the base's support. Declare the energy there (support=...)."
        )
    return support
