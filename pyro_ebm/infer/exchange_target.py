"""A Pyro model as a target of the exchange algorithm: without the log Z of its data, and able to draw other data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Generator, Tensor
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import NormalizerError
from pyro_ebm.distributions._legality import check_one_density
from pyro_ebm.distributions.energy_distribution import energy_distribution_of
from pyro_ebm.distributions.unnormalized import unnormalized_log_prob
from pyro_ebm.infer.auxiliary_data import exact_data, moved_data
from pyro_ebm.infer.model_target import ModelTarget


class ExchangeTarget(ModelTarget):
    """The density of a model's latent sites, up to the log Z of observed energies that lack it.

    Args:
        model: the model.
        args: its arguments; `kwargs` likewise.
        kwargs: its keywords.
        num_moves: of the data drawn; `None` draws them exactly.

    Raises:
        NormalizerError: if no observed energy lacks its log Z, one is scaled, or has no exact draws where they are
            wanted; and what a `ModelTarget` raises.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], num_moves: int | None
    ) -> None:
        super().__init__(WithoutLogNormalizer()(model), args, kwargs, gradient=False)
        density = ExchangeDensity(self, lambda: model(*args, **kwargs), num_moves)
        zeros = self.like.unsqueeze(0)
        density.exchanged(zeros, zeros, torch.zeros(1, dtype=torch.long, device=zeros.device))
        self.log_density = density  # type: ignore[method-assign]


class ExchangeDensity:
    """The log density of a target, which draws data, too: `Exchangeable` for samplers.

    Args:
        target: the target.
        model: the model with its arguments.
        num_moves: of the data drawn; `None` draws them exactly.
    """

    def __init__(self, target: ModelTarget, model: Callable[[], Any], num_moves: int | None) -> None:
        self._target, self._model, self._num_moves = target, model, num_moves

    def __call__(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """The log density `(chains,)` at `(chains, dim)`, and zeros."""
        return ModelTarget.log_density(self._target, position)

    def exchanged(self, position: Tensor, proposal: Tensor, seed: Tensor) -> Tensor:
        """See `Exchangeable`; the model is run for one chain after another."""
        here, there = self._target.constrain(position), self._target.constrain(proposal)
        ratios = []
        with torch.no_grad(), pyro.validation_enabled(False), poutine.block():
            for chain, number in enumerate(seed.tolist()):
                generator = Generator(position.device)
                generator.manual_seed(number)
                old, new = (self._energies({n: v[chain] for n, v in each.items()}) for each in (here, there))
                ratios.append(sum((self._ratio(n, old[n], site, generator) for n, site in new.items()), start=0.0))
        return torch.stack([torch.as_tensor(each).to(position) for each in ratios])

    def _energies(self, values: Mapping[str, Tensor]) -> dict[str, _EnergySite]:
        found = ObservedEnergies(values)
        with found:
            self._model()
        if not found.sites:
            raise NormalizerError(
                "Exchange: got a model without an observed energy that lacks its log Z, expected at least one. Where "
                "log Z is given, or there is none, NUTS and RandomWalk are right, and cost less."
            )
        return found.sites

    def _ratio(self, name: str, old: _EnergySite, new: _EnergySite, generator: Generator) -> Tensor:
        """`log f(y; θ) - log f(y; θ')` of one site, for y drawn at θ'."""
        distribution = energy_distribution_of(new.fn)
        if distribution is None:
            raise NormalizerError(f'Exchange: at site "{name}" got another distribution at another point.')
        if self._num_moves is not None:
            value = moved_data(distribution, new.value, self._num_moves, generator)
        else:
            drawn = exact_data(distribution, generator)
            if drawn is None:
                raise NormalizerError(
                    f'Exchange: at site "{name}" got an energy without exact draws, expected a graph of small '
                    "treewidth, at most 65536 states, an energy with `sample`, or a `sampler`. Give "
                    "num_auxiliary_moves, and see that the answer does not change when it is doubled."
                )
            value = drawn
        ratio = unnormalized_log_prob(old.fn, value) - unnormalized_log_prob(new.fn, value)
        masked: Tensor = scale_and_mask(ratio, mask=new.mask)
        return masked.sum()


class _EnergySite(NamedTuple):
    """An observed energy without its log Z: the distribution, the data, and what of them counts."""

    fn: Any
    value: Tensor
    mask: Any


class ObservedEnergies(Messenger):  # type: ignore[misc]
    """Finds the observed energies that lack their log Z, at given values of the latent sites.

    Args:
        values: by site.

    Attributes:
        sites: by name.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values
        self.sites: dict[str, _EnergySite] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if not msg["is_observed"] and name in self._values:
            msg["value"], msg["done"] = self._values[name], True
        elif _lacks_log_normalizer(msg):
            if isinstance(msg["scale"], Tensor) or msg["scale"] != 1:
                raise NormalizerError(
                    f'Exchange: at site "{name}" got a scale of {msg["scale"]}, expected none: the log Z of a power of '
                    "a density is not that power of its log Z. Leave out poutine.scale and subsample_size."
                )
            self.sites[name] = _EnergySite(msg["fn"], msg["value"], msg["mask"])


class WithoutLogNormalizer(Messenger):  # type: ignore[misc]
    """Lets observed energies that lack their log Z be scored without it, as is right where it cancels."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if _lacks_log_normalizer(msg):
            msg["fn"] = Numerator(msg["fn"])


class Numerator(TorchDistribution):  # type: ignore[misc]
    """`base(x) exp(-E(x))` of an energy distribution, of which nobody asks for log Z.

    Args:
        fn: the energy distribution, as a site has it.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (torch's own declaration)
    is_normalized = False

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        """That of the energy distribution."""
        support: Constraint = self._fn.support
        return support

    def log_prob(self, value: Tensor) -> Tensor:
        """Without log Z."""
        check_one_density()
        return unnormalized_log_prob(self._fn, value)


def _lacks_log_normalizer(msg: dict[str, Any]) -> bool:
    if not msg["is_observed"]:
        return False
    found = energy_distribution_of(msg["fn"])
    return found is not None and not found.is_normalized
