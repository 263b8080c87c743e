"""Does a factor tie together elements of a plate that is subsampled? Minibatches of such terms are not unbiased."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from pyro_ebm._core.errors import CoupledPlateError


def check_coupling(name: str, energy: Tensor, values: Sequence[Tensor]) -> None:
    """Raise where a factor that has just been declared ties together elements of a subsampled plate.

    That is if it lies outside of the plate of a site that it depends on, or if it lies inside and the energy of an
    element depends on the site at another one, by its gradient.

    Args:
        name: of the factor.
        energy: at the values, `(*batch,)`.
        values: what it is a function of.

    Raises:
        CoupledPlateError: there.
    """
    for nodes in _traces():
        if name not in nodes:
            continue
        own = {plate.name: plate.dim for plate in nodes[name]["cond_indep_stack"]}
        for site, plate in _subsampled(nodes, name):
            value = nodes[site]["value"]
            if plate.name not in own:
                if any(value is each for each in values) or _depends(energy, value, None):
                    raise CoupledPlateError(
                        f'at factor "{name}": got a function of the whole site "{site}", of which the plate '
                        f'"{plate.name}" has {plate.size} of {plate.full_size} elements, expected one for each '
                        f"element: {_WAYS_OUT}"
                    )
            elif plate.dim is not None and _depends(energy, value, (plate.dim, nodes[site]["fn"].event_dim)):
                raise CoupledPlateError(
                    f'at factor "{name}": got an energy at one element of the plate "{plate.name}" that depends on '
                    f'site "{site}" at another, and the plate has {plate.size} of {plate.full_size} elements, expected '
                    f"energies that depend on their own elements alone: {_WAYS_OUT}"
                )


_WAYS_OUT = (
    "terms between elements that are drawn together by chance are not the terms of the model, whatever they are scaled "
    "by. Use the whole plate, without subsample_size, or plates over what is independent (chains, images)."
)


def _traces() -> Iterator[dict[str, Any]]:
    for handler in _PYRO_STACK:
        if isinstance(handler, TraceMessenger):
            yield handler.trace.nodes


def _subsampled(nodes: dict[str, Any], but: str) -> Iterator[tuple[str, Any]]:
    """The sites in subsampled plates, with these."""
    for site, node in nodes.items():
        if site != but and node["type"] == "sample" and not node["infer"].get("is_auxiliary"):
            for plate in node["cond_indep_stack"]:
                if plate.full_size is not None and plate.full_size != plate.size:
                    yield site, plate


def _depends(energy: Tensor, value: Tensor, inside: tuple[int, int] | None) -> bool:
    """Whether an energy depends on a value at all, or, inside of a plate, at another element than its own.

    Args:
        energy: `(*batch,)`, with its graph.
        value: of a site.
        inside: the plate's dim, and how many event dims the value has.
    """
    if not (torch.is_grad_enabled() and energy.requires_grad and value.requires_grad):
        return False
    asked = energy
    if inside is not None:
        dim, event_dim = inside
        if -dim > energy.dim() or energy.shape[dim] < 2:
            return False
        asked = energy.select(dim, 0)
    (gradient,) = torch.autograd.grad(asked.sum(), value, retain_graph=True, allow_unused=True, materialize_grads=True)
    if inside is not None:
        position = value.dim() - event_dim + dim
        gradient = gradient.narrow(position, 1, gradient.shape[position] - 1)
    return bool((gradient != 0).any())
