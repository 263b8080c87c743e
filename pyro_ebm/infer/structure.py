"""What a Pyro model is made of: found by one traced run that never calls a site's `sample()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import BatchingError, EnergyShapeError
from pyro_ebm._core.linalg import each_alone
from pyro_ebm._core.supports import unconstraining
from pyro_ebm.infer.coordinates import Coordinates, unconstrained


@dataclass(frozen=True)
class LatentSite:
    """A continuous site that inference moves.

    Attributes:
        shape: of its value, batch and event dims.
        unconstrained_shape: of its unconstrained value.
        support: where it lives.
        dtype: of its value; `device` likewise.
        dims: the names of the plates at its leading dims, `None` where there is no plate.
    """

    shape: Size
    unconstrained_shape: Size
    support: Constraint
    dtype: torch.dtype
    device: torch.device
    dims: tuple[str | None, ...]

    @property
    def transform(self) -> Transform:
        """From unconstrained to constrained values."""
        return unconstraining(self.support, "LatentSite")


@dataclass(frozen=True)
class Structure:
    """The sites of a model.

    Attributes:
        latents: what inference moves.
        observed: the data, by site; `pyro.factor` and `pyro.deterministic` sites are none.
        observed_dims: names of the plates at the leading dims of the data.
        enumerated: names of discrete sites that inference sums out.
        enumerated_dims: names of the plates at the leading dims of these, with arrays of `sample_graph` as a whole.
        deterministics: names of `pyro.deterministic` and reparametrised sites, with the plates at their leading dims.
        plates: the size of each plate; `max_plate_nesting` is how many dims they take.
        unnormalized: names of observed sites whose density lacks its log Z.
    """

    latents: dict[str, LatentSite] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)
    observed_dims: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    deterministics: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    plates: dict[str, int] = field(default_factory=dict)
    max_plate_nesting: int = 0
    enumerated: list[str] = field(default_factory=list)
    enumerated_dims: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    unnormalized: list[str] = field(default_factory=list)


class FillLatents(Messenger):  # type: ignore[misc]
    """Gives every latent site a value inside its support, knowing only its shape.

    Args:
        free: values by site in their coordinates; what is absent gets zeros.
        coordinates: which these are.
    """

    def __init__(self, free: Mapping[str, Tensor], coordinates: Coordinates) -> None:
        super().__init__()
        self.free, self.coordinates = free, coordinates

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_subsample(msg):
            if is_random_subsample(msg):
                fn = msg["fn"]
                raise BatchingError(
                    f'plate "{msg["name"]}": got a random subsample of {fn.subsample_size} out of {fn.size}, expected '
                    "the whole plate: only SGLD and SVI take minibatches. Drop subsample_size, or use one of them."
                )
            return
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        fn, name = msg["fn"], msg["name"]
        if fn.support.is_discrete:
            if not fn.has_enumerate_support:
                raise BatchingError(
                    f'site "{name}": got a discrete latent site of endlessly many values ({type(fn).__name__}), '
                    "expected continuous sites, or discrete ones that can be enumerated. Sum it out in the model."
                )
            values = fn.enumerate_support(expand=False)
            msg["value"], msg["done"] = values[0].expand(fn.shape()).contiguous(), True
            return
        transform = self.coordinates(fn, name)
        zeros = floating_like(fn).new_zeros(transform.inverse_shape(fn.shape()))
        given = self.free.get(name, zeros)
        free = given.to(zeros) if given.shape == zeros.shape else zeros  # a new shape is for the caller to notice
        msg["value"] = transform(free).detach().requires_grad_()
        msg["infer"] = {**msg["infer"], "moved_by_mcmc": True}
        msg["done"] = True


def is_subsample(msg: Mapping[str, Any]) -> bool:
    """Whether a site is the index of a plate."""
    return type(msg["fn"]).__name__ == "_Subsample"


def is_random_subsample(msg: Mapping[str, Any]) -> bool:
    """Whether a site is the index of a plate that takes a random part of its data, not yet drawn."""
    fn = msg["fn"]
    return is_subsample(msg) and msg["value"] is None and fn.subsample_size is not None and fn.subsample_size < fn.size


def is_deterministic(msg: Mapping[str, Any]) -> bool:
    """Whether a site is a `pyro.deterministic` statement, or what `poutine.reparam` has made one like it."""
    fn = msg["fn"]
    return isinstance(fn, MaskedDistribution) and fn._mask is False and isinstance(fn.base_dist, Delta)


def floating_like(fn: Any) -> Tensor:
    """A tensor with the dtype and device of a distribution's parameters."""
    return next(_floating_tensors(fn), torch.empty(()))


def _floating_tensors(node: object) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        if node.is_floating_point():
            yield node
    elif isinstance(node, nn.Module):
        yield from (t for t in (*node.parameters(), *node.buffers()) if t.is_floating_point())
    elif isinstance(node, (Distribution, Transform)):
        for value in vars(node).values():
            yield from _floating_tensors(value)


def trace_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    free: Mapping[str, Tensor],
    coordinates: Coordinates = unconstrained,
) -> Any:
    """One run of the model with latent sites at the values given, by their coordinates, scored: a Pyro trace.

    Raises:
        BatchingError: if a site is discrete without end, or subsampled.
        EnergyShapeError: if an energy does not reduce just its event dims.
        UnnormalizedError: if a density lacks a log Z that is not a constant here.
    """
    with poutine.block(), pyro.validation_enabled(False):
        return each_alone(_scored_trace, model, args, kwargs, FillLatents(free, coordinates))


def _scored_trace(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], fill: FillLatents) -> Any:
    with fill:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
        for name in trace.nodes:
            try:
                trace.compute_log_prob(site_filter=lambda each, _, name=name: each == name)
            except ValueError as error:  # Pyro wraps every ValueError in one of its own
                if isinstance(error.__cause__, EnergyShapeError):
                    raise EnergyShapeError(f'at site "{name}": {error.__cause__}') from error
                raise
    return trace


def read_structure(trace: Any) -> Structure:
    """The structure of a traced model."""
    frames_of_all = (f for n in trace.nodes.values() for f in n.get("cond_indep_stack", ()) if f.vectorized)
    structure = Structure(max_plate_nesting=max((-frame.dim for frame in frames_of_all), default=0))
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or is_subsample(node):
            continue
        frames = {frame.dim: frame for frame in node["cond_indep_stack"] if frame.vectorized}
        structure.plates.update({frame.name: frame.size for frame in frames.values()})
        batch_dims = range(-len(node["fn"].batch_shape), 0)
        dims = tuple(frames[dim].name if dim in frames else None for dim in batch_dims)
        value: Tensor = node["value"]
        if is_deterministic(node):
            dims = tuple(frames[dim].name if dim in frames else None for dim in range(-value.dim(), 0))
            structure.deterministics[name] = dims
        elif node["is_observed"]:
            if not node["infer"].get("is_auxiliary"):
                structure.observed[name] = value.detach()
                structure.observed_dims[name] = dims
                if not getattr(node["fn"], "is_normalized", True):
                    structure.unnormalized.append(name)
        elif node["fn"].support.is_discrete:
            structure.enumerated.append(name)
            whole, shape = node["infer"].get("element_of", (name, node["fn"].event_shape))
            structure.enumerated_dims[whole] = (*dims, *[None] * len(shape))
        else:
            support = node["fn"].support
            shape = unconstraining(support, f'site "{name}"').inverse_shape(value.shape)
            structure.latents[name] = LatentSite(value.shape, shape, support, value.dtype, value.device, dims)
    return structure
