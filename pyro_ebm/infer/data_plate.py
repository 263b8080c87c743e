"""The plate of the data, and how each datum's latent values lie in the sites of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Generator, Size, Tensor

from pyro_ebm._core.errors import BatchingError
from pyro_ebm.infer.coordinates import unconstrained
from pyro_ebm.infer.structure import FillLatents, is_random_subsample, is_subsample
from pyro_ebm.mcmc.minibatch import Subsample

_CHAINS = "posterior_chains"


@dataclass(frozen=True)
class SiteLayout:
    """Where a datum is in the free values of a site.

    Attributes:
        dim: the dim of the data, counted from the left.
        shape: of the others, but for that of the chains.
    """

    dim: int
    shape: Size


@dataclass(frozen=True)
class DataPlate:
    """The plate that all latent sites lie in, with the free values of each datum side by side, `(chains, data, dim)`.

    Attributes:
        name: of the plate.
        size: N, all data.
        dim: its dim, negative.
        num_chains: of each datum; more than one lie along a dim to the left of all plates.
        subsample: what a minibatch takes at random; `None` if the plate is whole, or the model chooses.
        is_whole: whether every step sees all data.
        max_plate_nesting: how many dims the model's plates take.
        sites: the latent sites.
        like: a tensor `()` with dtype and device.
    """

    name: str
    size: int
    dim: int
    num_chains: int
    subsample: Subsample | None
    is_whole: bool
    max_plate_nesting: int
    sites: dict[str, SiteLayout]
    like: Tensor

    @property
    def num_coordinates(self) -> int:
        """How many free values a datum has in all its sites."""
        return sum(site.shape.numel() for site in self.sites.values())

    def draw(self, generator: Generator) -> Tensor | None:
        """The indices of a random minibatch, or of all data; `None` where the model chooses."""
        if self.subsample is not None:
            return self.subsample.draw((), generator)
        return torch.arange(self.size, device=self.like.device) if self.is_whole else None

    def over_chains(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model, for all chains at once."""
        return _over_chains(model, self.num_chains, self.max_plate_nesting)

    def to_sites(self, free: Tensor) -> dict[str, Tensor]:
        """Free values `(chains, data, dim)` by site, in the shapes of the model."""
        found, first = {}, 0
        for name, site in self.sites.items():
            numel = site.shape.numel()
            piece = free[..., first : first + numel].reshape(*free.shape[:2], *site.shape)
            found[name] = piece.movedim(1, site.dim) if self.num_chains > 1 else piece[0].movedim(0, site.dim)
            first += numel
        return found

    def to_rows(self, name: str, free: Tensor) -> Tensor:
        """The free values of a site, in the shape of the model, as `(chains, data, numel)`."""
        dim = self.sites[name].dim
        rows = free.movedim(dim, 1) if self.num_chains > 1 else free.movedim(dim, 0).unsqueeze(0)
        return rows.reshape(*rows.shape[:2], -1)

    def sum_by_datum(self, values: Tensor, dim: int) -> Tensor:
        """Sum over all dims but those of the chains and of the data, which is `dim`: `(chains, data)`."""
        moved = values.movedim(dim, -1)
        return moved.reshape(self.num_chains, -1, moved.shape[-1]).sum(1)


def read_data_plate(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], num_chains: int
) -> DataPlate:
    """Find the plate of a model's data by tracing it, without drawing from any site.

    Raises:
        BatchingError: if a latent site is discrete, there is none, they do not share a plate, or another plate is
            subsampled.
    """
    trace = _trace(model, args, kwargs)
    frames = [each for node in trace.nodes.values() for each in node.get("cond_indep_stack", ()) if each.vectorized]
    nesting = max((-each.dim for each in frames), default=0)
    trace = _trace(_over_chains(model, num_chains, nesting), args, kwargs)
    sites = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    latents = {name: node for name, node in sites.items() if "moved_by_mcmc" in node["infer"]}
    discrete = [name for name, node in sites.items() if _is_discrete_latent(node)]
    if discrete or not latents:
        found = f'the discrete latent site "{discrete[0]}"' if discrete else "no latent site"
        raise BatchingError(
            f"MonteCarloEM: got {found}, expected continuous latent sites in the plate of the data. Sum discrete sites "
            "out in the model, with dist.MixtureSameFamily say; a model without latent sites trains by SVI."
        )
    name, dim = _common_plate(latents)
    if name not in sites:
        raise BatchingError(f'MonteCarloEM: got a plate "{name}" made outside of the model, expected it inside.')
    plates = {each: node for each, node in sites.items() if is_subsample(node) and each != _CHAINS}
    for each, node in plates.items():
        if each != name and len(node["value"]) < node["fn"].size:
            raise BatchingError(
                f'MonteCarloEM: got a subsample of plate "{each}", expected one of the plate of the data, "{name}", '
                "alone: chains of a datum would meet another posterior at every step."
            )
    plate, taken = plates[name]["fn"], len(plates[name]["value"])
    random = plate.subsample_size is not None and plates[name]["infer"].get("is_random", False)
    like = next(iter(latents.values()))["value"]
    return DataPlate(
        name=name,
        size=plate.size,
        dim=dim,
        num_chains=num_chains,
        subsample=Subsample(plate.size, taken) if random else None,
        is_whole=taken == plate.size,
        max_plate_nesting=nesting,
        sites={each: _site(node, dim, num_chains, each) for each, node in latents.items()},
        like=like.detach().new_zeros(()),
    )


class _FirstIndices(Messenger):  # type: ignore[misc]
    """Gives random minibatches the first indices, and marks them."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_random_subsample(msg):
            msg["value"] = Subsample(msg["fn"].size, msg["fn"].subsample_size).first(msg["fn"].device)
            msg["infer"], msg["done"] = {**msg["infer"], "is_random": True}, True


def _trace(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad(), poutine.block(), pyro.validation_enabled(False), FillLatents({}, unconstrained):
        return poutine.trace(_FirstIndices()(model)).get_trace(*args, **kwargs)


def _over_chains(model: Callable[..., Any], num_chains: int, nesting: int) -> Callable[..., Any]:
    if num_chains == 1:
        return model

    def over_chains(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(_CHAINS, num_chains, dim=-nesting - 1):
            return model(*args, **kwargs)

    return over_chains


def _is_discrete_latent(node: dict[str, Any]) -> bool:
    return not (node["is_observed"] or is_subsample(node)) and bool(node["fn"].support.is_discrete)


def _common_plate(latents: dict[str, Any]) -> tuple[str, int]:
    """The name and dim of the plate that all latent sites lie in: of several, a subsampled one, or the outermost."""
    stacks = [[f for f in node["cond_indep_stack"] if f.vectorized and f.name != _CHAINS] for node in latents.values()]
    common = [f for f in stacks[0] if all(any(f.name == other.name for other in stack) for stack in stacks)]
    if not common:
        outside = [name for name, stack in zip(latents, stacks, strict=True) if not stack]
        raise BatchingError(
            f"MonteCarloEM: got latent sites {list(latents)} "
            f"{f'of which {outside} lie in no plate' if outside else 'that share no plate'}, expected all in the plate "
            "of the data. What all data share is to be learned: make it a pyro.param."
        )
    chosen = min(common, key=lambda f: (f.full_size in (None, f.size), f.dim))
    return chosen.name, chosen.dim


def _site(node: dict[str, Any], dim: int, num_chains: int, name: str) -> SiteLayout:
    value = node["value"]
    where = len(node["fn"].batch_shape) + dim
    free = unconstrained(node["fn"], name).inverse_shape(value.shape)
    others = [size for each, size in enumerate(free) if each != where]
    return SiteLayout(where, Size(others[1:] if num_chains > 1 else others))
