"""A run as a file that ArviZ reads, written part by part: draws need not fit in memory.

A part is a run of fewer draws, so `to_arviz` converts it, and the file is what the conversions of all parts say in a
row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from pyro_ebm.diagnostics.arviz_files import draw_bytes, write_netcdf, write_zarr
from pyro_ebm.infer.arviz import by_chain, to_arviz
from pyro_ebm.infer.target import Target

if TYPE_CHECKING:
    from pyro_ebm.diagnostics.inference_data import InferenceData

# What a part takes in memory, about.
_PART_BYTES = 2**25


class RecordedRun(Protocol):
    """An `MCMC`, with what it recorded as it lies in memory or on disk."""

    @property
    def target(self) -> Target:
        """The density that was sampled."""
        ...

    @property
    def attrs(self) -> dict[str, Any]:
        """What to keep of the run beside its draws."""
        ...

    def recorded(self, *, warmup: bool = False) -> dict[str, Tensor]:
        """Unconstrained positions `(chains, draws, dim)` and diagnostics `(chains, draws)`."""
        ...

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """The sites that are kept at unconstrained positions."""
        ...


@dataclass(frozen=True)
class _Part:
    """A stretch of a run's draws, and of its warm-up's: itself a run that `to_arviz` converts."""

    whole: RecordedRun
    draws: slice

    @property
    def target(self) -> Target:
        return self.whole.target

    @property
    def attrs(self) -> dict[str, Any]:
        return self.whole.attrs

    def _recorded(self, *, warmup: bool = False) -> dict[str, Tensor]:
        return {name: value[:, self.draws] for name, value in self.whole.recorded(warmup=warmup).items()}

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:
        return self.whole.constrain(self._recorded()["position"])

    def sample_discrete(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        return self.target.sample_discrete(self._recorded()["position"])

    def sample_stats(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._recorded().items() if name != "position"}

    def warmup_draws(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        stats = self._recorded(warmup=True)
        return (self.target.constrain(stats.pop("position")), stats) if stats else ({}, {})


def to_netcdf(mcmc: RecordedRun, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a run as netCDF, for `arviz.from_netcdf(path)`: what `to_arviz(mcmc, **options).to_netcdf(path)` writes.

    It takes about 100 MB of memory, however many the draws. The file is not compressed: random digits do not shrink.

    Args:
        mcmc: a run.
        path: the file; one that is there is replaced when all is written.
        options: those of `to_arviz`.
    """
    write_netcdf(Path(path), _parts(mcmc, options))


def to_zarr(mcmc: RecordedRun, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a run as a zarr store, as `to_netcdf` writes a file.

    Args:
        mcmc: a run.
        path: the folder; a store that is there is replaced.
        options: those of `to_arviz`.

    Raises:
        ImportError: if zarr is not installed.
    """
    write_zarr(Path(path), _parts(mcmc, options))


def _parts(mcmc: RecordedRun, options: Mapping[str, Any]) -> Iterator[InferenceData]:
    lengths = [value.shape[1] for warmup in (False, True) for value in mcmc.recorded(warmup=warmup).values()]
    chains, draws = mcmc.recorded()["position"].shape[:2]
    options = dict(options)
    predictive = by_chain(options.pop("posterior_predictive", None) or {}, chains, draws)

    def part(stretch: slice) -> InferenceData:
        here = {name: value[:, stretch].flatten(0, 1) for name, value in predictive.items()}
        return to_arviz(_Part(mcmc, stretch), posterior_predictive=here or None, **options)

    step = max(1, _PART_BYTES // draw_bytes(part(slice(0, 1))))  # one draw tells how large they are
    for start in range(0, max(lengths), step):
        yield part(slice(start, start + step))
        options = {name: value for name, value in options.items() if name not in ("prior", "constant_data")}
