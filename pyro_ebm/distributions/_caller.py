"""Who in Pyro is asking?

Pyro tells a distribution neither the name of its site nor what a draw is for. Where that decides between a right answer
and a silent error, or between a cheap call and a long one, we look up the call stack for the Pyro functions concerned.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from inspect import unwrap
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pyro.infer.enum
import pyro.infer.inspect
import pyro.infer.mcmc.util
import pyro.infer.predictive
from pyro import poutine
from pyro.infer.autoguide import initialization
from pyro.poutine.trace_struct import Trace
from torch import Tensor

# They add up the log probabilities of sites: what a missing log Z goes missing from.
_SCORING: set[CodeType] = {
    getattr(Trace, name).__code__ for name in ("log_prob_sum", "compute_log_prob", "compute_score_parts")
}
# Pyro's HMC and NUTS put values to the latent sites here, and those look observed.
_POTENTIAL: CodeType = pyro.infer.mcmc.util._PEMaker._potential_fn.__code__
# Their set-up scores the model once more, if it enumerates.
_MCMC_SETUP: CodeType = pyro.infer.mcmc.util.initialize_model.__code__
# They call sample() to learn a shape or what depends on what, and throw the draw away.
_SHAPING: set[CodeType] = {
    function.__code__
    for function in (
        initialization.init_to_uniform,
        initialization.init_to_feasible,
        pyro.infer.mcmc.util._guess_max_plate_nesting,
        unwrap(pyro.infer.inspect.get_dependencies),
        pyro.infer.inspect.get_model_relations,
    )
}
# The prior predictive's two shape-learning passes are those with an initialisation strategy.
_INIT_TO_SAMPLE: CodeType = initialization.init_to_sample.__code__
_PREDICTIVE: CodeType = pyro.infer.predictive._predictive.__code__
# The traces of every ELBO are made here.
_ELBO: CodeType = pyro.infer.enum.get_importance_trace.__code__
# Modules whose inference weighs or selects by log probabilities, and what they are.
_READERS: dict[str, str] = {
    "pyro.infer.importance": "importance sampling",
    "pyro.infer.predictive": "a weighted predictive",
    "pyro.infer.renyi_elbo": "RenyiELBO",
    "pyro.infer.rws": "ReweightedWakeSleep",
    "pyro.infer.smcfilter": "SMCFilter",
    "pyro.infer.trace_tail_adaptive_elbo": "TraceTailAdaptive_ELBO",
    "pyro.infer.traceenum_elbo": "TraceEnum_ELBO",
    "pyro.infer.tracetmc_elbo": "TraceTMC_ELBO",
}


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


class ScoredSite(NamedTuple):
    """A site whose log probability Pyro is computing.

    Attributes:
        name: its name.
        is_observed: whether it has a value that was not drawn or moved by inference.
        moved: what MCMC is moving, all else being constant to it; `None` if this is not MCMC.
        same_value: the name of another site that scores the very same value, or `None`.
        in_guide: whether it is a guide's that is not the model itself.
        event_dim: how many event dims its distribution has.
        enumerated: the dims along which other sites take all their values, by their names.
    """

    name: str
    is_observed: bool
    moved: Sequence[Tensor] | None
    same_value: str | None
    in_guide: bool
    event_dim: int
    enumerated: Mapping[str, int]


def scored_site() -> ScoredSite | None:
    """The site whose log probability is being computed, or `None` outside of Pyro's inference."""
    site: dict[str, Any] | None = None
    twin: str | None = None
    moved: dict[str, Tensor] | None = None
    trace: Trace | None = None
    in_guide = False
    for frame in _frames():
        if site is None and frame.f_code in _SCORING:
            site, trace = frame.f_locals["site"], frame.f_locals["self"]
            twin = next((name for name, node in trace.nodes.items() if _is_twin(node, site)), None)
            moved = {name: node["value"] for name, node in trace.nodes.items() if _moved_by_mcmc(node)} or None
        elif trace is not None and "guide_trace" in frame.f_code.co_varnames and _is_pyros(frame):
            if frame.f_locals.get("guide_trace") is trace:
                in_guide = not _is_the_models_own(frame.f_locals)
        elif moved is None and frame.f_code is _POTENTIAL:
            moved = frame.f_locals["params"]
        elif moved is None and frame.f_code is _MCMC_SETUP:
            moved = {}
    if site is None or site["mask"] is False:  # what is masked out is computed, and not used
        return None
    is_observed = site["is_observed"] and site["name"] not in (moved or ())
    enumerated = {
        name: node["infer"]["_enumerate_dim"]
        for name, node in (trace.nodes.items() if trace is not None else ())
        if node is not site and node["type"] == "sample" and node["infer"].get("_enumerate_dim") is not None
    }
    return ScoredSite(
        site["name"],
        is_observed,
        None if moved is None else list(moved.values()),
        twin,
        in_guide,
        site["fn"].event_dim,
        enumerated,
    )


def _is_the_models_own(names: Mapping[str, Any]) -> bool:
    """Whether a guide is the model itself, whose prior is proposed from: so what it lacks cancels."""
    owner = names.get("self")
    model, guide = (names.get(name, getattr(owner, name, None)) for name in ("model", "guide"))
    return model is not None and guide is not None and poutine.unwrap(model) is poutine.unwrap(guide)


def _is_pyros(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("pyro.infer")


def value_needed() -> str | None:
    """What part of Pyro that is scoring a site needs the value of log Z, and not its gradient alone, if one does."""
    scoring = False
    for frame in _frames():
        scoring = scoring or frame.f_code in _SCORING
        if not scoring:
            continue
        reader = _READERS.get(str(frame.f_globals.get("__name__", "")))
        if reader is not None:
            return reader
        if frame.f_code is _ELBO:
            for name, node in frame.f_locals["guide_trace"].nodes.items():
                if node["type"] == "sample" and not node["is_observed"] and not node["fn"].has_rsample:
                    return f'a guide whose site "{name}" is not reparameterised'
    return None


def _is_twin(node: dict[str, Any], site: dict[str, Any]) -> bool:
    return (
        node is not site
        and node["type"] == "sample"
        and node["value"] is site["value"]
        and not node["infer"].get("is_auxiliary", False)
    )


def moved_by_chains() -> bool:
    """Whether the log probability being computed is one that MCMC will ask for at every step."""
    site = scored_site()
    if site is not None and site.moved is not None:
        return True
    return any(
        frame.f_code.co_name == "_pyro_post_sample" and getattr(frame.f_locals.get("self"), "moves_chains", False)
        for frame in _frames()
    )


def _moved_by_mcmc(node: dict[str, Any]) -> bool:
    return node["type"] == "sample" and "moved_by_mcmc" in node["infer"]


def only_shape_needed() -> bool:
    """Whether the draw being made is one that Pyro makes for its shape alone."""
    codes = {frame.f_code for frame in _frames()}
    return not codes.isdisjoint(_SHAPING) or {_INIT_TO_SAMPLE, _PREDICTIVE} <= codes
