"""A Pyro model with subsampled plates as a target: its log density is estimated from minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ebm._core.errors import BatchingError
from pyro_ebm._core.ravel import Raveler
from pyro_ebm.infer.model_target import ModelTarget
from pyro_ebm.infer.structure import Structure, is_random_subsample, is_subsample
from pyro_ebm.mcmc.minibatch import Subsample


class FillMinibatch(Messenger):  # type: ignore[misc]
    """Gives subsampled plates their indices: those it is `at`, or else the first ones.

    Pyro scales what lies in such a plate by `size / subsample_size`, so that the log density is right on average.

    Attributes:
        plates: the subsampled plates, by name.
        complete: whether all are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plates: dict[str, Subsample] = {}
        self.complete = False
        self._indices: dict[str, Tensor] = {}

    @contextmanager
    def at(self, minibatch: Sequence[Tensor]) -> Iterator[None]:
        """Inside, the plates have these indices, in the order of `plates`; if there are none, the first ones."""
        before = self._indices
        self._indices = dict(zip(self.plates, minibatch, strict=True)) if minibatch else {}
        try:
            yield
        finally:
            self._indices = before

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_random_subsample(msg):
            msg["value"], msg["done"] = self._take(msg["name"], msg["fn"]), True
        elif not (is_subsample(msg) or msg["is_observed"] or msg["done"]) and msg["value"] is None:
            self._require_outside(msg)

    def _take(self, name: str, fn: Any) -> Tensor:
        found = Subsample(fn.size, fn.subsample_size)
        known = self.plates.get(name) if self.complete else self.plates.setdefault(name, found)
        if known != found:
            raise BatchingError(
                f'plate "{name}": got a subsample of {found.subsample_size} out of {found.size}, expected one of '
                f"{[f'{each} ({n.subsample_size} of {n.size})' for each, n in self.plates.items()]}: the same plates "
                "in every minibatch. Let neither names nor sizes of plates depend on indices."
            )
        return self._indices[name] if name in self._indices else found.first(fn.device)

    def _require_outside(self, msg: dict[str, Any]) -> None:
        inside = [frame.name for frame in msg["cond_indep_stack"] if frame.name in self.plates]
        if not inside:
            return
        way_out = (
            "Sum it out in the model, with dist.MixtureSameFamily say."
            if msg["fn"].support.is_discrete
            else "Declare it in a whole plate of another name, and index it by the subsample: z[idx]."
        )
        raise BatchingError(
            f'site "{msg["name"]}": got a latent site in the subsampled plate "{inside[0]}", expected it outside: a '
            f"step moves all latent sites, and would meet others in every minibatch. {way_out}"
        )


class MinibatchTarget:
    """The density of a Pyro model's latent sites, estimated from a minibatch of each subsampled plate.

    The minibatch is the same for all chains. A model without subsampled plates has its whole density.

    Args:
        model: the model.
        args: its arguments; `kwargs` likewise.
        kwargs: its keywords.

    Attributes:
        structure: the sites; without those whose value is of a minibatch.
        subsamples: the subsampled plates.

    Raises:
        BatchingError: if latent sites are subsampled, or discrete beside a subsampled plate; or for what a
            `ModelTarget` raises it.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._fill = fill = FillMinibatch()
        self._target = ModelTarget(fill(model), args, kwargs)
        fill.complete = True
        self.subsamples = tuple(fill.plates.values())
        self.structure = _whole(self._target.structure, fill.plates)
        if self.subsamples and self.structure.enumerated:
            raise BatchingError(
                f'site "{self.structure.enumerated[0]}": got a discrete site to be summed out beside the subsampled '
                f'plate "{next(iter(fill.plates))}", expected continuous sites: the logarithm of a sum has no unbiased '
                "estimate from minibatches. Drop subsample_size."
            )

    @property
    def raveler(self) -> Raveler:
        """See `Target`."""
        return self._target.raveler

    @property
    def concern(self) -> str | None:
        """See `Target`."""
        return self._target.concern

    @property
    def like(self) -> Tensor:
        """See `Target`."""
        return self._target.like

    def log_density(self, position: Tensor, /, *minibatch: Tensor) -> tuple[Tensor, Tensor]:
        """The estimate and its gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`.

        Args:
            position: where, `(chains, dim)`.
            *minibatch: the indices for each of `subsamples`, `(subsample_size,)`; if left out, the first ones.
        """
        with self._fill.at(minibatch):
            return self._target.log_density(position)

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """See `Target`."""
        return self._target.constrain(position)

    def sample_discrete(self, position: Tensor) -> dict[str, Tensor]:
        """See `Target`."""
        return self._target.sample_discrete(position)

    def initial_points(self, strategy: Callable[..., Any], num_chains: int) -> Tensor:
        """See `Target`: finite for the first minibatch."""
        return self._target.initial_points(strategy, num_chains)

    def pointwise(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the sites outside of subsampled plates: see `Target`."""
        deterministics, log_likelihood = self._target.pointwise(values)
        return (
            {name: value for name, value in deterministics.items() if name in self.structure.deterministics},
            {name: value for name, value in log_likelihood.items() if name in self.structure.observed},
        )


def _whole(structure: Structure, subsampled: dict[str, Subsample]) -> Structure:
    """A structure without the sites in subsampled plates."""

    def outside(dims: dict[str, tuple[str | None, ...]]) -> dict[str, tuple[str | None, ...]]:
        return {name: plates for name, plates in dims.items() if not subsampled.keys() & set(plates)}

    observed_dims = outside(structure.observed_dims)
    return replace(
        structure,
        observed={name: value for name, value in structure.observed.items() if name in observed_dims},
        observed_dims=observed_dims,
        deterministics=outside(structure.deterministics),
        plates={name: size for name, size in structure.plates.items() if name not in subsampled},
    )
