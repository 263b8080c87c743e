"""Discrete latent sites of a model, summed out exactly by elimination.

Every site takes all of its values at once, along a dim of its own as long as it meets another site, so that the model's
log probabilities become tables; sites that never meet in one of these share a dim. What meets is found by running the
model, not by what it says of itself: chains need no `pyro.markov`, and grids of any size few dims.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor

from pyro_ebm._core.errors import BatchingError, EnumeratedContextError, GraphError, TreewidthError
from pyro_ebm.distributions._legality import enumerated_context
from pyro_ebm.distributions.energy_distribution import energy_distribution_of
from pyro_ebm.graphs.coloring import color
from pyro_ebm.graphs.elimination.plated import PlatedFactor, PlatedGraph, PlatedVariable, joint_states
from pyro_ebm.graphs.networks import connected_parts
from pyro_ebm.graphs.tables import MAX_TABLE_ENTRIES
from pyro_ebm.infer.messengers import LogJoint
from pyro_ebm.infer.structure import is_subsample

# So many sites at a time take two values each, to see what depends on them.
_AT_ONCE = 12


class Enumerate(Messenger):  # type: ignore[misc]
    """Gives discrete latent sites all of their values, each along a dim; sites without a dim get their first value.

    Args:
        dims: by site, the batch dim that its values go along, negative.
        most: of the values of each site no more than these.

    Attributes:
        states: all values of each site, `(K, *event)`.
    """

    def __init__(self, dims: Mapping[str, int], most: int | None = None) -> None:
        super().__init__()
        self.dims, self.most = dims, most
        self.states: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn, name = msg["fn"], msg["name"]
        if is_subsample(msg) or msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        if not fn.support.is_discrete:
            return
        values: Tensor = fn.enumerate_support(expand=False)
        event = values.shape[values.dim() - len(fn.event_shape) :]
        flat = values.reshape(len(values), *event)
        self.states[name] = flat
        dim = self.dims.get(name)
        if dim is None:
            msg["value"] = flat[0].reshape([*[1] * len(fn.batch_shape), *event])
        else:
            flat = flat[: self.most]
            msg["value"] = flat.reshape(len(flat), *[1] * (-dim - 1), *event)
        msg["done"] = True


class AtState(Messenger):  # type: ignore[misc]
    """Gives each discrete latent site one of its values.

    Args:
        states: all values of each site, `(K, *event)`.
        number: which of them, counted from the first again where there are fewer, `()`.
    """

    def __init__(self, states: Mapping[str, Tensor], number: Tensor) -> None:
        super().__init__()
        self.states, self.number = states, number

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        states = self.states.get(msg["name"])
        if states is not None and not msg["done"]:
            value = states[self.number % len(states)]
            msg["value"], msg["done"] = value.reshape([*[1] * len(msg["fn"].batch_shape), *value.shape]), True


@dataclass(frozen=True)
class Enumeration:
    """How a model's discrete sites are summed out.

    Attributes:
        sites: the discrete sites, with their plates.
        dims: the batch dim that each one's values go along; sites that never meet share one.
        scopes: for each site of the model whose log probability depends on discrete ones, which these are.
        plates: the sizes of the plates of each of these, by dim.
        states: all values of each discrete site, `(K, *event)`.
        elements: for sites that are elements of an array, its name and shape, in the order of its elements.
        num_plates: how many batch dims there are to the right of those of enumeration.
    """

    sites: Mapping[str, PlatedVariable]
    dims: Mapping[str, int]
    scopes: Mapping[str, tuple[str, ...]]
    plates: Mapping[str, Mapping[int, int]]
    states: Mapping[str, Tensor]
    elements: Mapping[str, tuple[str, Size]]
    num_plates: int
    graph: PlatedGraph = field(init=False)
    together: Mapping[str, Sequence[str]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "graph", PlatedGraph(self.sites, self.num_plates))
        object.__setattr__(self, "together", _components(self.scopes))

    def log_partition(self, log_probs: Mapping[str, Tensor]) -> Tensor:
        """The log of the sum over the discrete sites of `exp(Σ log_probs)`, `()`.

        Args:
            log_probs: by site of the model, for those in `scopes`, computed with the values that `Enumerate` gives.
        """
        try:
            return self.graph.log_partition(self._factors(self.tables(log_probs)))
        except GraphError as error:
            raise BatchingError(f"the discrete sites cannot be summed out: {error}") from error

    def pointwise(self, log_probs: Mapping[str, Tensor], data: Collection[str]) -> dict[str, Tensor]:
        """The log likelihood `log p(x_n | θ)` of each datum, with the discrete sites summed out, `(*plates,)` each.

        That is `log Σ exp(all that hangs together by discrete sites)` less the same without the datum. Data are left
        out where several hang together, so that none has a likelihood of its own (a hidden Markov model), where a plate
        lies between a datum and the discrete sites, and where data have dims outside of plates.

        Args:
            log_probs: as for `log_partition`.
            data: the observed sites among them.
        """
        tables, found = self.tables(log_probs), {}
        for name in data:
            together, plates = self.together[name], self.plates[name]
            right = log_probs[name].shape[-self.num_plates :] if self.num_plates else ()
            inside = all(self.plates[each].keys() == plates.keys() for each in together)
            inside = inside and all(size == 1 or dim - len(right) in plates for dim, size in enumerate(right))
            if inside and sum(each in data for each in together) == 1:
                rest = self._by_plate(tables, [each for each in together if each != name])
                sizes = [plates.get(dim, 1) for dim in range(min(plates, default=0), 0)]
                found[name] = (self._by_plate(tables, together) - rest).reshape(sizes)
        return found

    def _by_plate(self, tables: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        """The log of the sum over the discrete sites of some tables, for each element of their plates, `(*plates,)`."""
        right = range(-self.num_plates, 0)
        factors = [
            PlatedFactor(self.scopes[n], frozenset(), tables[n].movedim(tuple(right), tuple(range(self.num_plates))))
            for n in names
        ]
        inside = {name: PlatedVariable(site.num_states, frozenset()) for name, site in self.sites.items()}
        return PlatedGraph(inside, 0).log_partition(factors)

    def sample(self, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exact draws of the discrete sites, given `tables` with leading dims: by site `(*lead, *plates, *event)`."""
        values = {}
        for name, numbers in self.graph.sample(self._factors(tables)).items():
            plates = self.sites[name].plates
            outside = range(numbers.dim() - self.num_plates, numbers.dim() + min(plates, default=0))
            numbers = numbers.squeeze(tuple(outside)) if outside else numbers
            values[name] = self.states[name].to(numbers.device)[numbers]
        return self._joined(values)

    def _joined(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same with the elements of an array put together, where all of them were summed out."""
        arrays: dict[str, list[str]] = {}
        for name, (whole, _) in self.elements.items():
            arrays.setdefault(whole, []).append(name)
        for whole, names in arrays.items():
            shape = self.elements[names[0]][1]
            if len(names) == shape.numel():
                flat = torch.stack([values.pop(name) for name in names], -1)
                values[whole] = flat.reshape(*flat.shape[:-1], *shape)
        return values

    def _factors(self, tables: Mapping[str, Tensor]) -> list[PlatedFactor]:
        return [PlatedFactor(self.scopes[name], frozenset(self.plates[name]), each) for name, each in tables.items()]

    def tables(self, log_probs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log probabilities as tables `(K_1, ..., K_r, *plates)`, in the order of their scopes."""
        return {name: self._table(name, log_prob) for name, log_prob in log_probs.items()}

    def _table(self, name: str, log_prob: Tensor) -> Tensor:
        scope, plates, right = self.scopes[name], self.plates[name], self.num_plates
        least = -min([*(self.dims[each] for each in scope), -right])
        table = log_prob[(None,) * max(0, least - log_prob.dim())]
        sizes = [plates.get(dim, table.shape[dim]) for dim in range(-right, 0)]
        table = table.expand(*table.shape[: table.dim() - right], *sizes)
        inside = [dim for dim in range(-right, 0) if dim not in plates and table.shape[dim] > 1]
        table = table.sum(inside, keepdim=True) if inside else table
        own = [table.dim() + self.dims[each] for each in scope]
        left = [dim for dim in range(table.dim() - right) if dim not in own]
        states = [self.sites[each].num_states for each in scope]
        if any(table.shape[dim] != 1 for dim in left) or [table.shape[dim] for dim in own] != states:
            raise BatchingError(
                f'site "{name}": got a log probability of shape {tuple(log_prob.shape)}, expected one that depends on '
                f"the discrete sites {list(scope)} with {states} states, as at the start. Let what a site depends on "
                "be the same at every point."
            )
        table = table.permute([*left, *own, *range(table.dim() - right, table.dim())])
        return table.reshape(table.shape[len(left) :])


def _components(scopes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each site of the model, those that hang together with it by discrete sites that they share."""
    names = list(scopes)
    number = {name: position for position, name in enumerate(names)}
    edges = torch.tensor([(number[name], number[each]) for name, scope in scopes.items() for each in scope])
    parts = [[names[i] for i in part.tolist()] for part in connected_parts(len(names), edges)]
    return {name: part for part in parts for name in part}


def find_enumeration(
    run: Callable[[Enumerate, Collection[str]], LogJoint], trace: Any, names: Sequence[str]
) -> Enumeration:
    """Find out what depends on which discrete site, and lay out their dims.

    Args:
        run: runs the model with discrete sites as the messenger gives them, and keeps apart the log probabilities of
            some of its sites.
        trace: a trace of the model, with every site at one value, and scored.
        names: the discrete sites.

    Raises:
        BatchingError: if a discrete site has batch dims outside of plates, or something outside of its plates depends
            on its elements.
        TreewidthError: if something depends on too many of them at once.
    """
    scored = {name: node for name, node in trace.nodes.items() if node["type"] == "sample" and not is_subsample(node)}
    num_plates = max((len(node["fn"].batch_shape) for node in scored.values()), default=0)
    frames = {
        name: {frame.dim: frame.size for frame in node["cond_indep_stack"] if frame.vectorized}
        for name, node in scored.items()
    }
    for name in names:
        shape = scored[name]["fn"].batch_shape
        if any(size > 1 and dim - len(shape) not in frames[name] for dim, size in enumerate(shape)):
            raise BatchingError(
                f'site "{name}": got a discrete site of batch shape {tuple(shape)} with dims outside of plates, '
                "expected a plate for each: elements take their values independently. Put it in pyro.plate(...)."
            )
    scopes: dict[str, dict[str, None]] = {name: {} for name in scored}
    messenger = Enumerate({})
    for first in range(0, len(names), _AT_ONCE):
        dims = {name: -num_plates - 1 - k for k, name in enumerate(names[first : first + _AT_ONCE])}
        messenger = Enumerate(dims, most=2)
        for name, log_prob in run(messenger, scored).apart.items():
            _require_same_plates(name, log_prob, scored[name]["log_prob"], num_plates)
            scopes[name].update(
                {site: None for site, dim in dims.items() if -dim <= log_prob.dim() and log_prob.shape[dim] > 1}
            )
    sites = {name: PlatedVariable(len(messenger.states[name]), frozenset(frames[name])) for name in names}
    _require_log_normalizers(scopes, scored)
    for name in names:
        scopes[name].setdefault(name)
    _require_feasible(scopes, sites, frames)
    return Enumeration(
        sites,
        {name: -num_plates - 1 - colour for name, colour in _colours(names, scopes.values()).items()},
        {name: tuple(scope) for name, scope in scopes.items() if scope},
        frames,
        messenger.states,
        {name: scored[name]["infer"]["element_of"] for name in names if "element_of" in scored[name]["infer"]},
        num_plates,
    )


def _require_same_plates(name: str, log_prob: Tensor, usual: Tensor, num_plates: int) -> None:
    """Check the batch dims of a log probability when discrete sites take all their values."""
    for dim in range(-min(num_plates, log_prob.dim()), 0):
        expected = usual.shape[dim] if -dim <= usual.dim() else 1
        if log_prob.shape[dim] not in (1, expected):
            raise BatchingError(
                f'site "{name}": got size {log_prob.shape[dim]} at dim {dim} of its log probability when the discrete '
                f"sites take all their values, expected {expected}. These values lie along a dim to the left of all "
                "plates, and have size one along their plates: index or sum them along neither. What couples elements "
                "of a plate needs them as sites of their own (for i in pyro.plate(...))."
            )


def _require_log_normalizers(scopes: Mapping[str, Collection[str]], scored: Mapping[str, Any]) -> None:
    """Check that no density without its log Z depends on another site that is summed out."""
    for name, scope in scopes.items():
        energy = energy_distribution_of(scored[name]["fn"])
        contexts = [each for each in scope if each != name]
        if contexts and energy is not None and not energy.is_normalized:
            raise EnumeratedContextError(enumerated_context(name, contexts[0]))


def _require_feasible(
    scopes: Mapping[str, Collection[str]], sites: Mapping[str, PlatedVariable], frames: Mapping[str, Mapping[int, int]]
) -> None:
    for name, scope in scopes.items():
        states = joint_states(scope, sites)
        if states > MAX_TABLE_ENTRIES:
            raise TreewidthError(
                f'site "{name}": its log probability depends on {len(scope)} discrete sites at once, with {states:.3g} '
                f"joint states, expected at most {MAX_TABLE_ENTRIES:.3g}. Write it as a sum of terms over few of them, "
                "each a site or pyro.factor of its own."
            )
        for each in scope:
            if not sites[each].plates <= frames[name].keys():
                raise BatchingError(
                    f'site "{name}": it depends on the discrete site "{each}", but lies outside of that one\'s plate, '
                    "expected it inside: elements of a plate are summed out independently. Put it in the plate, or "
                    "loop over the plate (for i in pyro.plate(...)), so that its elements are sites of their own."
                )


def _colours(names: Sequence[str], scopes: Collection[Collection[str]]) -> dict[str, int]:
    """A number for each site, different from those of the sites that it meets in a scope."""
    number = {name: position for position, name in enumerate(names)}
    pairs = {(number[one], number[other]) for scope in scopes for one, other in combinations(scope, 2)}
    found = color(len(names), torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2))
    return dict(zip(names, found.tolist(), strict=True))
