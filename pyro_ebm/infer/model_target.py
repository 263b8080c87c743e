"""A Pyro model as a target: written for one chain, run for many by `torch.func.vmap`."""

from __future__ import annotations

import functools
import linecache
import os
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ebm._core.errors import BatchingError
from pyro_ebm._core.gradients import value_alone, value_and_gradient
from pyro_ebm._core.linalg import each_alone
from pyro_ebm._core.ravel import Raveler
from pyro_ebm._core.supports import same_support
from pyro_ebm.infer.coordinates import Coordinates, unconstrained
from pyro_ebm.infer.enumeration import AtState, Enumerate, Enumeration, find_enumeration
from pyro_ebm.infer.fresh_tensors import fresh_tensors
from pyro_ebm.infer.initial_points import initial_points
from pyro_ebm.infer.messengers import LogJoint, Pointwise
from pyro_ebm.infer.structure import LatentSite, read_structure, trace_model
from pyro_ebm.infer.vmap_safe import vmap_safe
from pyro_ebm.mcmc.minibatch import Subsample

# Draws evaluated at a time when many are constrained or scored: bounds memory.
_CHUNK = 256
_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep
    for file in (str(torch.__file__), str(pyro.__file__), os.path.dirname(__file__))
)


class ModelTarget:
    """The density of a Pyro model's latent sites, in unconstrained coordinates.

    One traced run finds shapes, supports and plates; it never calls a site's `sample()`. Two more find randomness of
    the model's own and supports that depend on other sites.

    Args:
        model: the model.
        args: its arguments; `kwargs` likewise.
        coordinates: of the sites.
        gradient: whether the density has its gradient; zeros if not.

    A model that vmap cannot batch is run chain by chain. Discrete sites are summed out.

    Attributes:
        concern: why it is run chain by chain, with the way out; nothing if it is not.

    Raises:
        BatchingError: if the model has subsampled sites, discrete ones that cannot be enumerated, randomness of its
            own, or no latent site.
        UnnormalizedError: if a density lacks a log Z that is not a constant here.
    """

    _handler: LogJoint | None = None
    _enumeration: Enumeration | None = None
    concern: str | None = None
    _writes: bool = False  # whether the model writes values into tensors that it makes
    subsamples: tuple[Subsample, ...] = ()

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        coordinates: Coordinates = unconstrained,
        gradient: bool = True,
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._coordinates, self._gradient = coordinates, gradient
        trace = trace_model(model, args, kwargs, {}, coordinates)
        self.structure = read_structure(trace)
        latents = self.structure.latents
        if not latents:
            raise BatchingError("got a model without latent sites, expected at least one: nothing is to be sampled.")
        self.raveler = Raveler({name: site.unconstrained_shape for name, site in latents.items()})
        sites = list(latents.values())
        dtype = functools.reduce(torch.promote_types, (site.dtype for site in sites))
        self.like = torch.zeros(self.raveler.dim, dtype=dtype, device=sites[0].device)
        # At a random point: at zero, what multiplies a site vanishes.
        elsewhere = {n: 2 * torch.rand(shape).to(self.like) - 1 for n, shape in self.raveler.shapes.items()}
        first, second = (trace_model(model, args, kwargs, elsewhere, coordinates) for _ in range(2))
        same_supports = self._compare_supports(read_structure(first).latents)
        self._static_supports = same_supports and coordinates is unconstrained
        self._require_deterministic(first, second)
        if self.structure.enumerated:
            self._enumeration = self._find_enumeration(trace)
        self._probe()

    # -- the density -------------------------------------------------------------------------------------------------

    def _sites(self, flat: Tensor) -> dict[str, Tensor]:
        latents = self.structure.latents
        return {name: value.to(latents[name].dtype) for name, value in self.raveler.unravel(flat).items()}

    def run_model(self, handler: Any) -> Any:
        """Run the model under a handler, which is given back."""
        with handler:
            self._model(*self._args, **self._kwargs)
        return handler

    def _log_joint(self, flat: Tensor) -> Tensor:
        enumeration = self._enumeration
        apart = {} if enumeration is None else enumeration.scopes
        self._handler = handler = LogJoint(self._sites(flat), self._coordinates, apart)
        if enumeration is None:
            joint = self.run_model(handler).total
        else:
            with Enumerate(enumeration.dims):
                joint = self.run_model(handler).total + enumeration.log_partition(handler.apart)
        total: Tensor = joint.to(flat.dtype)
        return total

    def _find_enumeration(self, trace: Any) -> Enumeration:
        """See `find_enumeration`."""
        sites = self._sites(self.like)

        def run(messenger: Enumerate, apart: Collection[str]) -> LogJoint:
            with torch.no_grad(), pyro.validation_enabled(False), poutine.block(), messenger:
                handler: LogJoint = self.run_model(LogJoint(sites, self._coordinates, apart))
            for name, value in handler.values.items():
                expected = self.structure.latents[name].shape
                if value.shape != expected:
                    raise BatchingError(
                        f'site "{name}": got coordinates that depend on discrete sites (values of shape '
                        f"{tuple(value.shape)}, not {tuple(expected)}), expected the same for all their values. Use "
                        "NUTS, whose coordinates depend on the support alone."
                    )
            return handler

        return find_enumeration(run, trace, self.structure.enumerated)

    def log_density(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """Log density and gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`."""
        evaluate = self._batched_density if self.concern is None else self._density_by_chain
        try:
            with torch.no_grad(), pyro.validation_enabled(False), poutine.block(), vmap_safe():
                return each_alone(evaluate, position)
        except (RuntimeError, ValueError) as error:
            self._explain(error)
        finally:
            self._handler = None

    def _batched_density(self, position: Tensor) -> tuple[Tensor, Tensor]:
        log_joint = self._of_a_chain(self._log_joint)
        if not self._gradient:
            return value_alone(torch.func.vmap(log_joint, randomness="error"), position)
        gradient, value = torch.func.vmap(torch.func.grad_and_value(log_joint), randomness="error")(position)
        return value, gradient

    def _of_a_chain(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A function of a chain's tensors, as vmap can batch it."""
        if not self._writes:
            return function

        def writing(chain: Any) -> Any:
            with fresh_tensors(pytree.tree_leaves(chain)[0]):
                return function(chain)

        return writing

    def _density_by_chain(self, position: Tensor) -> tuple[Tensor, Tensor]:
        evaluate = value_and_gradient if self._gradient else value_alone
        values, gradients = [], []
        for row in position:
            value, gradient = evaluate(self._log_joint, row)
            values.append(value)
            gradients.append(gradient)
        return torch.stack(values), torch.stack(gradients)

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """Unconstrained `(*lead, dim)` to values by site, `(*lead, *shape)`."""
        if self._static_supports:
            sites = self._sites(position)
            return {name: site.transform(sites[name]) for name, site in self.structure.latents.items()}

        def values(flat: Tensor) -> dict[str, Tensor]:
            with Enumerate({}):
                found: dict[str, Tensor] = self.run_model(LogJoint(self._sites(flat), self._coordinates)).values
            return found

        lead = position.shape[:-1]
        found = self._batched(values, position.reshape(-1, self.raveler.dim))
        return {name: value.reshape((*lead, *value.shape[1:])) for name, value in found.items()}

    def pointwise(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Deterministic sites and log likelihoods at values `(draws, *shape)`, each `(draws, ...)`.

        Deterministic sites that depend on discrete ones are left out; so are data of which several hang together by
        discrete sites (see `Enumeration.pointwise`). There are none where the model decides by values what sites it
        has.
        """
        if self.concern is not None:
            return {}, {}
        enumeration, structure = self._enumeration, self.structure

        def evaluate(one: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            if enumeration is None:
                handler = self.run_model(Pointwise(one))
                return handler.deterministics, handler.log_likelihood
            with Enumerate(enumeration.dims):
                handler = self.run_model(Pointwise(one, enumeration.scopes))
            fixed = {name: handler.deterministics[name] for name in self._fixed_deterministics}
            data = [name for name in handler.apart if name in structure.observed]
            return fixed, {**handler.log_likelihood, **enumeration.pointwise(handler.apart, data)}

        deterministics, log_likelihood = self._batched(evaluate, values)
        return deterministics, log_likelihood

    @functools.cached_property
    def _fixed_deterministics(self) -> frozenset[str]:
        """The deterministic sites that depend on no discrete one: these are batched, and all that follows from them."""
        enumeration, fixed = self._enumeration, set[str]()
        if enumeration is None or not self.structure.deterministics:
            return frozenset(self.structure.deterministics)
        values = self.constrain(self.like)

        def run(number: Tensor) -> Tensor:
            with AtState(enumeration.states, number):
                handler = self.run_model(Pointwise(values))
            batched = torch._C._functorch.is_batchedtensor
            fixed.update(name for name, value in handler.deterministics.items() if not batched(value))
            return number

        self._batched(run, torch.arange(2, device=self.like.device))
        return frozenset(fixed)

    def sample_discrete(self, position: Tensor) -> dict[str, Tensor]:
        """Exact draws of the discrete sites that are summed out, given the others at `(*lead, dim)`.

        Returns:
            By site `(*lead, *shape)`, arrays of `sample_graph` as a whole; empty if there is none.
        """
        enumeration = self._enumeration
        if enumeration is None:
            return {}

        def tables(flat: Tensor) -> dict[str, Tensor]:
            handler = LogJoint(self._sites(flat), self._coordinates, enumeration.scopes)
            with Enumerate(enumeration.dims):
                return enumeration.tables(self.run_model(handler).apart)

        chunks = position.reshape(-1, self.raveler.dim).split(_CHUNK)
        drawn = [enumeration.sample(self._batched(tables, chunk)) for chunk in chunks]
        values = {name: torch.cat([each[name] for each in drawn]) for name in drawn[0]}
        return {name: value.reshape(*position.shape[:-1], *value.shape[1:]) for name, value in values.items()}

    def _batched(self, function: Callable[[Any], Any], argument: Any) -> Any:
        with torch.no_grad(), pyro.validation_enabled(False), poutine.block(), vmap_safe():
            if self.concern is None:
                return torch.func.vmap(self._of_a_chain(function), randomness="error", chunk_size=_CHUNK)(argument)
            results = [function(row) for row in argument]
            return pytree.tree_map(lambda *each: torch.stack(each), *results)

    # -- starting ----------------------------------------------------------------------------------------------------

    def initial_points(self, strategy: Callable[..., Any], num_chains: int) -> Tensor:
        """A start for each chain, `(chains, dim)`, by one of Pyro's strategies."""

        def draw_one(chosen: Callable[..., Any]) -> Tensor:
            with poutine.block(), pyro.validation_enabled(False), torch.no_grad():
                trace = poutine.trace(InitMessenger(chosen)(self._model)).get_trace(*self._args, **self._kwargs)
            values = {name: trace.nodes[name] for name in self.structure.latents}
            return self.raveler.ravel(
                {n: self._coordinates(v["fn"], n).inv(v["value"].detach()) for n, v in values.items()}
            )

        def explain(point: Tensor) -> str:
            trace = trace_model(self._model, self._args, self._kwargs, self._sites(point), self._coordinates)
            bad = [n for n, v in trace.nodes.items() if "log_prob" in v and not torch.isfinite(v["log_prob"]).all()]
            return (
                f"At the last try, the log probability is not finite at sites {bad}."
                if bad
                else ("At the last try every site's log probability is finite, but the gradient is not.")
            )

        return initial_points(strategy, num_chains, self.like, draw_one, self.log_density, explain)

    # -- what cannot be batched --------------------------------------------------------------------------------------

    def _require_deterministic(self, first: Any, second: Any) -> None:
        for name, node in first.nodes.items():
            if "log_prob" not in node:
                continue
            again = second.nodes[name]["log_prob"] if name in second.nodes else None
            if again is None or not torch.equal(node["log_prob"].nan_to_num(), again.nan_to_num()):
                raise BatchingError(
                    f'site "{name}": got different log probabilities in two runs at the same point, expected the same: '
                    "the model draws random numbers of its own. Draw them before the run and pass them as arguments, "
                    "make them sites (pyro.sample), or put dropout layers in eval mode."
                )

    def _compare_supports(self, other: Mapping[str, LatentSite]) -> bool:
        here = self.structure.latents
        shapes = [{n: site.unconstrained_shape for n, site in each.items()} for each in (here, other)]
        if shapes[0] != shapes[1]:
            changed = sorted(set(shapes[0].items()) ^ set(shapes[1].items()), key=str)
            raise BatchingError(
                f'got latent sites that depend on the values of others (site "{changed[0][0]}" and its shape change '
                "from point to point), expected the same sites at every point. Use a model with a fixed set of sites."
            )
        return all(same_support(here[name].support, other[name].support) for name in here)

    def _probe(self) -> None:
        errors = []
        for self._writes in (False, True):
            try:
                self.log_density(torch.stack([self.like, self.like]))
                return
            except _VmapError as error:
                errors.append(error)
        self.concern = f"{errors[0]} Until then the model is run chain by chain, slowly."
        self.log_density(self.like.unsqueeze(0))

    def _explain(self, error: Exception) -> NoReturn:
        """Turn what vmap says into the site, the line and the way out."""
        text, handler = str(error), self._handler
        after = f'after site "{handler.last_site}"' if handler is not None and handler.last_site else "in the model"
        line = _user_line(error)
        where = f"{after}{f' ({line})' if line else ''}"
        if "randomness" in text or "random operation" in text:
            raise BatchingError(
                f"{where}: got a random operation inside the model, expected randomness only at pyro.sample sites. "
                "Draw it before the run and pass it as an argument, or put dropout layers in eval mode."
            ) from error
        if "data-dependent" in text or ".item()" in text or "have storage" in text:
            raise _VmapError(
                f"{where}: got a Python branch, .item() or NumPy call that depends on a sampled value, expected one "
                "program for all chains. Use torch.where(condition, a, b) instead of if, and keep tensors as tensors."
            ) from error
        if "vmap" in text:
            raise _VmapError(
                f"{where}: the model cannot be run for many chains at once: {text.splitlines()[0]} Write that step "
                "without in-place or boolean-mask operations."
            ) from error
        raise error


class _VmapError(BatchingError):
    """What only vmap cannot do: each chain alone can."""


def _user_line(error: Exception) -> str | None:
    """The last line of the traceback that is not of a library."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not os.path.abspath(frame.filename).startswith(_LIBRARIES):
            source = linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"{os.path.basename(frame.filename)}, line {frame.lineno}: {source}"
    return None
