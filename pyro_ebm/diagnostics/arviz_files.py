"""ArviZ's files, written part by part: each part has more draws of the same groups."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arviz import InferenceData
    from xarray import Dataset

# The stretches that files are read and written in are about so long.
_CHUNK_BYTES = 2**20
_CHAIN, _DRAW = "chain", "draw"


def draw_bytes(data: InferenceData) -> int:
    """What one draw of all chains takes in all groups, given one draw."""
    return sum(int(group.nbytes) for group in _groups(data).values() if _DRAW in group.sizes)


def write_netcdf(path: Path, parts: Iterable[InferenceData]) -> None:
    """Write parts in a row to one file, which is there when all is written.

    Args:
        path: the file.
        parts: of which the first has all groups; groups of later ones that have draws are appended.

    Raises:
        OSError: if it cannot be written.
    """
    import h5netcdf

    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        for number, part in enumerate(parts):
            for name, group in _groups(part).items():
                if not number:
                    group.to_netcdf(
                        partial,
                        mode="a" if partial.exists() else "w",
                        group=name,
                        engine="h5netcdf",
                        encoding={v: {"chunksizes": chunks} for v, chunks in _chunks(group).items()},
                        unlimited_dims=[_DRAW] if _DRAW in group.sizes else [],
                    )
                elif group.sizes.get(_DRAW):
                    with h5netcdf.File(partial, "a") as file:
                        _append(file[name], group)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _append(stored: Any, group: Dataset) -> None:
    """Write the draws of a group after those of its namesake in a file."""
    start = stored.dimensions[_DRAW].size
    stop = start + group.sizes[_DRAW]
    stored.resize_dimension(_DRAW, stop)
    for name, variable in _following(group, start).variables.items():
        if _DRAW in variable.dims:
            where = tuple(slice(start, stop) if dim == _DRAW else slice(None) for dim in variable.dims)
            stored.variables[name][where] = variable.values.astype(stored.variables[name].dtype)


def write_zarr(path: Path, parts: Iterable[InferenceData]) -> None:
    """Write parts in a row to one store; see `write_netcdf`. It has format 2 of zarr, which all versions read.

    Raises:
        ImportError: if zarr is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "to_zarr: got no zarr, expected it to be installed: pip install pyro_ebm[zarr]. to_netcdf needs nothing."
        ) from error
    zarr.open_group(path, mode="w", zarr_format=2)
    lengths: dict[str, int] = {}
    for number, part in enumerate(parts):
        for name, group in _groups(part).items():
            if not number:
                encoding = {v: {"chunks": chunks} for v, chunks in _chunks(group).items()}
                group.to_zarr(path, group=name, mode="a", encoding=encoding, consolidated=False, zarr_format=2)
            elif group.sizes.get(_DRAW):
                following = _following(group, lengths[name])
                following.to_zarr(path, group=name, mode="a", append_dim=_DRAW, consolidated=False)
            lengths[name] = lengths.get(name, 0) + group.sizes.get(_DRAW, 0)
    zarr.consolidate_metadata(path)


def _groups(data: InferenceData) -> dict[str, Dataset]:
    if hasattr(data, "children"):  # a DataTree, from ArviZ 1.0 on
        return {name: node.to_dataset() for name, node in data.children.items()}
    return {name: data[name] for name in data.groups()}


def _following(group: Dataset, start: int) -> Dataset:
    """The group with its draws numbered from `start`."""
    return group.assign_coords({_DRAW: group[_DRAW] + start})


def _chunks(group: Dataset) -> dict[Any, tuple[int, ...]]:
    """Stretches of whole draws of one chain, or where they are small, of several."""
    found = {}
    for name, variable in group.variables.items():
        if _DRAW in variable.dims:
            sizes = {**variable.sizes}
            chains, draws = sizes.pop(_CHAIN, 1), sizes.pop(_DRAW)
            fitting = max(1, _CHUNK_BYTES * chains * draws // max(variable.nbytes, 1))  # draws of one chain
            wanted = {_CHAIN: min(chains, max(1, fitting // draws)), _DRAW: min(draws, fitting), **sizes}
            found[name] = tuple(wanted[dim] for dim in variable.dims)
    return found
