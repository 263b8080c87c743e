"""Minibatches of tensors or of a torch `DataLoader`, without end, that can be saved and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyro_ebm._core.randomness import seeded

Batch = Tensor | tuple[Tensor, ...]
Data = Tensor | tuple[Tensor, ...] | Dataset[Any] | DataLoader[Any]

_CPU = torch.device("cpu")


class Batches(Protocol):
    """Minibatches without end. Random numbers are from torch's global generator."""

    def following(self) -> Batch:
        """The next one."""
        ...

    def first(self, count: int) -> Batch:
        """At least so many data, if there are, to fit to: they are as good as any others, and drawn again later."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from there."""
        ...


def batches_of(data: Data, batch_size: int) -> Batches:
    """Minibatches of data.

    Args:
        data: a tensor `(N, *event)`, or several with the same N; a `Dataset` of such elements; or a `DataLoader`, which
            has a batch size of its own.
        batch_size: how many data are in each.

    Raises:
        TypeError: if the data are none of these.
        ValueError: if tensors are empty or differ in length.
    """
    if isinstance(data, Tensor):
        return TensorBatches((data,), batch_size)
    if isinstance(data, (tuple, list)) and data and all(isinstance(each, Tensor) for each in data):
        return TensorBatches(tuple(data), batch_size)
    if isinstance(data, DataLoader):
        return LoaderBatches(data)
    if isinstance(data, IterableDataset):
        return LoaderBatches(DataLoader(data, batch_size))
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return LoaderBatches(DataLoader(data, batch_size, shuffle=True, drop_last=len(data) > batch_size))
    raise TypeError(
        f"got data of type {type(data).__name__}, expected a tensor, a tuple of tensors, a torch Dataset or a "
        "DataLoader. Use torch.as_tensor(array)."
    )


class TensorBatches:
    """Shuffled minibatches of tensors; what an epoch leaves over, less than a batch, is left out of it.

    Args:
        tensors: each `(N, ...)`.
        batch_size: at most N counts.
    """

    def __init__(self, tensors: tuple[Tensor, ...], batch_size: int) -> None:
        lengths = {len(each) if each.dim() else 0 for each in tensors}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(f"got tensors of {sorted(lengths)} data, expected as many in each, and at least one.")
        self._tensors = tensors
        self._size = min(batch_size, *lengths)
        self._order = torch.empty(0, dtype=torch.long)
        self._next = 0

    def following(self) -> Batch:
        """See `Batches`."""
        if self._next + self._size > len(self._order):
            self._order, self._next = torch.randperm(len(self._tensors[0])), 0
        index = self._order[self._next : self._next + self._size]
        self._next += self._size
        return _one_or_several([each[index.to(each.device)] for each in self._tensors])

    def first(self, count: int) -> Batch:
        """See `Batches`."""
        if len(self._tensors[0]) <= count:
            return _one_or_several(self._tensors)
        index = torch.randperm(len(self._tensors[0]))[:count]
        return _one_or_several([each[index.to(each.device)] for each in self._tensors])

    def state_dict(self) -> dict[str, Any]:
        """See `Batches`."""
        return {"order": self._order, "next": self._next}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Batches`."""
        self._order, self._next = state["order"], state["next"]


class LoaderBatches:
    """The minibatches of a `DataLoader`, epoch after epoch.

    An epoch is replayed from its seed when it is resumed, up to where it was: with a sampler that draws from torch's
    global generator or the loader's, the same minibatches follow.

    Args:
        loader: its batches are tensors, or sequences of them.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._epoch: Iterator[Any] | None = None
        self._start: dict[str, Any] = {}
        self._used = 0

    def following(self) -> Batch:
        """See `Batches`."""
        if self._epoch is not None:
            found = next(self._epoch, None)
            if found is not None:
                self._used += 1
                return _one_or_several(found)
        self._epoch, found = self._begun(int(torch.randint(2**62, ())), self._loader_state())
        self._used = 1
        return _one_or_several(found)

    def _loader_state(self) -> Tensor | None:
        generator = self._loader.generator
        return None if generator is None else generator.get_state()

    def _begun(self, seed: int, loader_state: Tensor | None) -> tuple[Iterator[Any], Any]:
        """An epoch with its first batch, which is when its order is drawn."""
        self._start = {"seed": seed, "loader": loader_state}
        if self._loader.generator is not None and loader_state is not None:
            self._loader.generator.set_state(loader_state)
        with seeded(Generator().manual_seed(seed), _CPU):
            epoch = iter(self._loader)
            try:
                return epoch, next(epoch)
            except StopIteration:
                raise ValueError("got a DataLoader without a batch, expected one at least.") from None

    def first(self, count: int) -> Batch:
        """See `Batches`."""
        state = self._loader_state()
        found: list[tuple[Tensor, ...]] = []
        for each in self._loader:
            found.append(_as_tuple(each))
            if sum(len(batch[0]) for batch in found) >= count:
                break
        if not found:
            raise ValueError("got a DataLoader without a batch, expected one at least.")
        if self._loader.generator is not None and state is not None:
            self._loader.generator.set_state(state)
        return _one_or_several([torch.cat(parts) for parts in zip(*found, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """See `Batches`."""
        return {**self._start, "used": self._used}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Batches`."""
        self._epoch, self._used = None, state["used"]
        if self._used:
            self._epoch, _ = self._begun(state["seed"], state["loader"])
            for _ in range(self._used - 1):
                next(self._epoch)


def _as_tuple(found: Any) -> tuple[Tensor, ...]:
    parts = (found,) if isinstance(found, Tensor) else found
    if isinstance(parts, (tuple, list)) and parts and all(isinstance(each, Tensor) for each in parts):
        return tuple(parts)
    raise TypeError(
        f"got a batch of type {type(found).__name__}, expected a tensor or a sequence of tensors. "
        "Give the DataLoader a collate_fn that returns them."
    )


def _one_or_several(found: Any) -> Batch:
    """A tensor alone, or a tuple of several."""
    parts = _as_tuple(found)
    return parts[0] if len(parts) == 1 else parts
