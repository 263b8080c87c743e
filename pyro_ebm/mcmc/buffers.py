"""Where draws are kept: in memory, or in files that the system maps into memory, which draws may then outgrow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_IN_STATE, _IN_FILE = "buffer.", "file."


class Buffers(Protocol):
    """Tensors by name, filled bit by bit."""

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The tensor of that name, to write to; a new one of zeros at the first call."""
        ...

    def read(self) -> dict[str, Tensor]:
        """All tensors, to read."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to have them again."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        ...


class MemoryBuffers:
    """Tensors in the memory of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: dict[str, Tensor] = {}

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Buffers`."""
        if name not in self._tensors:
            self._tensors[name] = torch.zeros(list(shape), dtype=dtype, device=self._device)
        return self._tensors[name]

    def read(self) -> dict[str, Tensor]:
        """See `Buffers`."""
        return dict(self._tensors)

    def state_dict(self) -> dict[str, Any]:
        """The tensors themselves."""
        return {f"{_IN_STATE}{name}": tensor for name, tensor in self._tensors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved.

        Raises:
            ValueError: if the draws were kept in files.
        """
        if any(key.startswith(_IN_FILE) for key in state):
            raise ValueError(
                "got the state of a run whose draws are in a folder, expected one with its draws in it. Give the "
                "folder: MCMC(..., draws_to=folder)."
            )
        self._tensors = {name: value.to(self._device).clone() for name, value in _named(state, _IN_STATE).items()}


class MappedBuffers:
    """Tensors whose numbers lie in a folder, one `<name>.npy` each, which `numpy.load(..., mmap_mode="r")` reads too.

    What is written outlives the process at once, and a power cut once `state_dict` has been called. Pages of the files
    that the system holds in memory are its cache: it takes them back when memory is needed.

    Args:
        folder: made when the first tensor is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, np.memmap[Any, Any]] = {}

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Buffers`; always on the CPU.

        Raises:
            OSError: if the disk has no room.
        """
        if name not in self._maps:
            self._folder.mkdir(parents=True, exist_ok=True)
            kind = torch.empty(0, dtype=dtype).numpy().dtype
            made = np.lib.format.open_memmap(self._file(name), mode="w+", dtype=kind, shape=tuple(shape))
            _reserve(self._file(name))
            self._maps[name] = made
        return torch.from_numpy(self._maps[name])

    def read(self) -> dict[str, Tensor]:
        """See `Buffers`: what a reader changes stays in memory, and does not reach the files."""
        return {name: torch.from_numpy(np.load(self._file(name), mmap_mode="c")) for name in self._maps}

    def state_dict(self) -> dict[str, Any]:
        """The shapes only: the numbers are on disk when this returns."""
        for mapped in self._maps.values():
            mapped.flush()
        return {f"{_IN_FILE}{name}": list(mapped.shape) for name, mapped in self._maps.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the files that are there; what was kept in memory is written to new ones.

        Raises:
            ValueError: if a file is missing, or of another shape.
        """
        self._maps = {name: self._opened(name, shape) for name, shape in _named(state, _IN_FILE).items()}
        for name, value in _named(state, _IN_STATE).items():
            self.buffer(name, value.shape, value.dtype).copy_(value)

    def _opened(self, name: str, shape: Sequence[int]) -> np.memmap[Any, Any]:
        file = self._file(name)
        if not file.exists():
            raise ValueError(
                f'got no file "{file}", expected the draws of the saved run there. Give the folder it wrote to.'
            )
        mapped: np.memmap[Any, Any] = np.load(file, mmap_mode="r+")
        if mapped.shape != tuple(shape):
            raise ValueError(f'"{file}": got shape {mapped.shape}, expected {tuple(shape)}: it is of another run.')
        return mapped


def _named(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _reserve(file: Path) -> None:
    """Take the room on disk now, with an error if there is none: later, a full disk would kill the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    size = file.stat().st_size
    try:
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
    except OSError as error:
        file.unlink()
        raise OSError(
            error.errno, f"got no room for {size / 1e9:.2f} GB of draws ({error.strerror}). Free some", str(file)
        ) from error
