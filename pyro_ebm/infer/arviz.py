"""`to_arviz`: a run with everything that ArviZ can use of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyro.infer
import torch
from torch import Size, Tensor

from pyro_ebm._core.errors import BatchingError
from pyro_ebm._core.warn import warn
from pyro_ebm.diagnostics.inference_data import inference_data
from pyro_ebm.infer.structure import Structure
from pyro_ebm.infer.target import Target, build_target

if TYPE_CHECKING:
    from pyro_ebm.diagnostics.inference_data import InferenceData


class BatchedRun(Protocol):
    """A finished run: an `MCMC`."""

    @property
    def target(self) -> Target:
        """The density that was sampled."""
        ...

    @property
    def attrs(self) -> dict[str, Any]:
        """What to keep of the run beside its draws."""
        ...

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Draws by site."""
        ...

    def sample_discrete(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Draws of the discrete sites that were summed out."""
        ...

    def sample_stats(self) -> dict[str, Tensor]:
        """Diagnostics of each draw, `(chains, draws)`."""
        ...

    def warmup_draws(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draws and diagnostics of the warm-up."""
        ...


def to_arviz(
    mcmc: BatchedRun | pyro.infer.MCMC,
    *,
    log_likelihood: bool = True,
    discrete: bool = False,
    prior: Mapping[str, Tensor] | None = None,
    posterior_predictive: Mapping[str, Tensor] | None = None,
    constant_data: Mapping[str, Tensor] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> InferenceData:
    """Convert a run to ArviZ's `InferenceData`.

    It has the groups `posterior` (with `pyro.deterministic` sites), `sample_stats` (`lp`, `diverging`,
    `acceptance_rate`, `step_size`, `tree_depth`, `n_steps`, `energy` and kin), `observed_data`, `log_likelihood` of
    each datum (masks applied, scales not), and what is given; after `MCMC(..., save_warmup=True)` also
    `warmup_posterior` and `warmup_sample_stats`. Dims and coords come from plates.

    Where discrete sites are summed out, the log likelihood of each datum sums them out too, and lacks data that none of
    several has for itself (those of a hidden Markov model); deterministic sites that depend on them are left out.

    Args:
        mcmc: a finished run, of pyro_ebm or of Pyro itself; the latter has fewer diagnostics to give, and if its model
            cannot be batched, no more than draws and divergences.
        log_likelihood: whether to compute the log likelihood.
        discrete: whether `posterior` shall have draws of the discrete sites that were summed out
            (`MCMC.sample_discrete`).
        prior: draws from the prior predictive by site, `(draws, *shape)`, as `pyro.infer.Predictive(model,
            num_samples=...)` makes them; latent sites go to `prior`, data to `prior_predictive`.
        posterior_predictive: draws by site, `(chains * draws, *shape)`, as
            `pyro.infer.Predictive(model, mcmc.get_samples())` makes them.
        constant_data: what else the model was given, by name.
        dims: names for a variable's dims, in place of those from plates.
        coords: labels along named dims.

    Returns:
        ArviZ's container. `posterior.attrs` names the kernel, its time and step size, and in `unnormalized_sites` the
        data whose log likelihood lacks its log Z, and so cannot be compared with another model's.

    Raises:
        ValueError: if predictive draws do not divide among the chains, or discrete ones are asked of a run of Pyro's.
    """
    target: Target | None
    if isinstance(mcmc, pyro.infer.MCMC):
        if discrete:
            raise ValueError(
                "to_arviz: got discrete=True for a run of Pyro's, expected one of pyro_ebm. Use "
                "pyro.infer.infer_discrete."
            )
        target = _pyro_target(mcmc)
        posterior = mcmc.get_samples(group_by_chain=True)
        groups = {"posterior": dict(posterior), "sample_stats": {"diverging": _pyro_divergences(mcmc)}}
        attrs: dict[str, Any] = {"inference_library": "pyro"}
    else:
        target = mcmc.target
        posterior = mcmc.get_samples(group_by_chain=True)
        groups = {"posterior": dict(posterior), "sample_stats": mcmc.sample_stats()}
        if discrete:
            groups["posterior"].update(mcmc.sample_discrete(group_by_chain=True))
        groups["warmup_posterior"], groups["warmup_sample_stats"] = mcmc.warmup_draws()
        attrs = mcmc.attrs
    structure = target.structure if target is not None else Structure()
    chains, draws = next(iter(posterior.values())).shape[:2]
    if target is not None and ((log_likelihood and structure.observed) or structure.deterministics):
        deterministics, likelihoods = _pointwise(target, posterior)
        groups["posterior"].update(deterministics)
        if log_likelihood:
            groups["log_likelihood"] = likelihoods
    groups["observed_data"] = structure.observed
    groups["constant_data"] = dict(constant_data or {})
    shapes = {name: value.shape[2:] for name, value in groups["posterior"].items()}
    shapes |= {name: value.shape for name, value in structure.observed.items()}
    if posterior_predictive is not None:
        groups["posterior_predictive"] = by_chain(_unpadded(posterior_predictive, shapes), chains, draws)
    if prior is not None:
        prior = _unpadded(prior, shapes)
        latent = {name for name in prior if name in structure.latents or name in structure.deterministics}
        groups["prior"] = {name: value.unsqueeze(0) for name, value in prior.items() if name in latent}
        groups["prior_predictive"] = {name: v.unsqueeze(0) for name, v in prior.items() if name not in latent}
    attrs["unnormalized_sites"] = structure.unnormalized
    return inference_data(
        groups,
        dims={**_dims(structure), **(dims or {})},
        coords={**{name: range(size) for name, size in structure.plates.items()}, **(coords or {})},
        attrs=attrs,
    )


def _pointwise(target: Target, posterior: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    chains, draws = next(iter(posterior.values())).shape[:2]
    missing = set(target.structure.latents) - set(posterior)
    if missing or not draws:
        return {}, {}  # the run kept only some sites (save_params): nothing can follow from them
    flat = {name: posterior[name].flatten(0, 1) for name in target.structure.latents}
    found = target.pointwise(flat)
    deterministics, likelihoods = (
        {name: value.reshape(chains, draws, *value.shape[1:]) for name, value in each.items()} for each in found
    )
    return deterministics, likelihoods


def _unpadded(values: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> dict[str, Tensor]:
    """Draws in the shapes of their sites: Pyro's `Predictive` pads those outside of plates with dims of size one."""
    return {
        name: value.reshape(len(value), *shapes[name])
        if name in shapes and value.shape[1:].numel() == shapes[name].numel()
        else value
        for name, value in values.items()
    }


def by_chain(values: Mapping[str, Tensor], chains: int, draws: int) -> dict[str, Tensor]:
    """Predictive draws by site, `(chains * draws, *shape)` to `(chains, draws, *shape)`.

    Raises:
        ValueError: if they do not divide among the chains.
    """
    for name, value in values.items():
        if value.shape[0] != chains * draws:
            raise ValueError(
                f'to_arviz: at posterior_predictive site "{name}" got {value.shape[0]} draws, expected {chains} chains '
                f"times {draws} draws. Make them by Predictive(model, mcmc.get_samples())."
            )
    return {name: value.reshape(chains, draws, *value.shape[1:]) for name, value in values.items()}


def _dims(structure: Structure) -> dict[str, list[str]]:
    """Dims of each variable: plates where there are any, ArviZ's own kind of name elsewhere."""
    shapes = {name: (site.shape, site.dims) for name, site in structure.latents.items()}
    shapes |= {name: (value.shape, structure.observed_dims[name]) for name, value in structure.observed.items()}
    named = {name: _names(name, len(shape), plates) for name, (shape, plates) in shapes.items()}
    named |= {name: _names(name, len(plates), plates) for name, plates in structure.enumerated_dims.items()}
    return named | {name: _names(name, len(plates), plates) for name, plates in structure.deterministics.items()}


def _names(site: str, ndims: int, plates: Sequence[str | None]) -> list[str]:
    padded = [*plates, *[None] * (ndims - len(plates))]
    return [plate or f"{site}_dim_{i}" for i, plate in enumerate(padded)]


def _pyro_target(mcmc: Any) -> Target | None:
    """The model of a run of Pyro's, or `None` where there is none (a `potential_fn`) or it cannot be batched."""
    if mcmc.kernel.model is None:
        return None
    try:
        target = build_target(mcmc.kernel.model, mcmc._args, mcmc._kwargs)
        if target.concern is None:
            return target
        error: Exception | str = target.concern
    except BatchingError as refused:
        error = refused
    warn(f"to_arviz: only draws and divergences are converted. {error}", UserWarning)
    return None


def _pyro_divergences(mcmc: Any) -> Tensor:
    """Pyro lists divergent draws by `"chain i"`; here as `(chains, draws)`, chain i in row i."""
    diverging = torch.zeros(mcmc.num_chains, mcmc.num_samples, dtype=torch.bool)
    for chain, draws in mcmc.diagnostics().get("divergences", {}).items():
        diverging[int(chain.removeprefix("chain ")), draws] = True
    return diverging
