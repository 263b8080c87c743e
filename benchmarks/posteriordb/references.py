"""Reference draws: from a clone of posteriordb, or from a folder with one JSON file for each posterior."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Reference:
    """What the reference draws say of one posterior.

    Attributes:
        data: what the Stan program is given.
        parameters: names of the parameters.
        mean: of each, `(P)`.
        sd: standard deviation, `(P)`.
        kurtosis: fourth central moment in units of the variance squared, `(P)`.
        size: how many independent draws the reference is worth: the smallest bulk ESS among its parameters.
    """

    data: Mapping[str, Any]
    parameters: list[str]
    mean: Array
    sd: Array
    kurtosis: Array
    size: float


def references(folder: Path) -> dict[str, Callable[[], Reference]]:
    """How to read each posterior of a folder that has reference draws.

    Args:
        folder: a clone of posteriordb, or JSON files.
    """
    database = folder / "posterior_database"
    if database.is_dir():
        drawn = sorted((database / "reference_posteriors" / "draws" / "draws").glob("*.json.zip"))
        names = [path.name.removesuffix(".json.zip") for path in drawn]
        return {name: (lambda name=name: from_database(database, name)) for name in names}
    return {path.stem: (lambda path=path: from_file(path)) for path in sorted(folder.glob("*.json"))}


def from_database(database: Path, name: str) -> Reference:
    """One of posteriordb's own."""
    draws = database / "reference_posteriors" / "draws"
    posterior = json.loads((database / "posteriors" / f"{name}.json").read_text())
    info = json.loads((draws / "info" / f"{name}.info.json").read_text())
    chains = _unzipped(draws / "draws" / f"{name}.json.zip")
    pooled = np.concatenate([np.array(list(chain.values())) for chain in chains], -1)  # (P, draws)
    return Reference(
        data=_unzipped(database / "data" / "data" / f"{posterior['data_name']}.json.zip"),
        parameters=list(chains[0]),
        mean=pooled.mean(-1),
        sd=pooled.std(-1),
        kurtosis=_kurtosis(pooled),
        size=min(info["diagnostics"]["effective_sample_size_bulk"]),
    )


def from_file(path: Path) -> Reference:
    """From a file with `data`, `parameters`, `mean`, `mean_square`, `draws_thinned` and the smallest bulk ESS."""
    saved = json.loads(path.read_text())
    mean = np.array(saved["mean"])
    return Reference(
        data=saved["data"],
        parameters=saved["parameters"],
        mean=mean,
        sd=np.sqrt(np.array(saved["mean_square"]) - mean**2),
        kurtosis=_kurtosis(np.array(saved["draws_thinned"]).T),
        size=saved["reference"]["ess_bulk_min"],
    )


def _kurtosis(draws: Array) -> Array:
    """Of each row, `(P, draws)` to `(P)`."""
    deviation = draws - draws.mean(-1, keepdims=True)
    kurtosis: Array = (deviation**4).mean(-1) / (deviation**2).mean(-1) ** 2
    return kurtosis


def _unzipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))
