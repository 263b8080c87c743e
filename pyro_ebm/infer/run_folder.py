"""The folder of a run whose draws are on disk: the draws while they come, and every so often the run itself."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

_STATE = "state.pt"


class RunFolder:
    """A folder with one run in it: `draws/` and `warmup/`, an array for each name, and `state.pt`.

    Attributes:
        path: the folder.
        run_id: tells the run from any other.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run_id = ""

    @property
    def _state(self) -> Path:
        return self.path / _STATE

    def claim(self, num_bytes: int) -> None:
        """Take the folder for a new run, whose draws will take so many bytes.

        Raises:
            FileExistsError: if there is anything in it.
            OSError: if it cannot be written to, or its disk has no room.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
        except OSError as error:
            raise OSError(
                error.errno,
                f"draws_to: got a folder that cannot be made ({error.strerror}). Name another",
                str(self.path),
            ) from error
        if occupied:
            raise FileExistsError(
                f'draws_to: got "{self.path}", which is not empty, expected a new folder: no run overwrites another. '
                "resume(*args) goes on with the run that is there; to start anew, remove the folder or name another."
            )
        if not os.access(self.path, os.W_OK):
            raise PermissionError(f'draws_to: got "{self.path}", which is read-only. Name another folder.')
        free = shutil.disk_usage(self.path).free
        if free < num_bytes:
            raise OSError(
                f'draws_to: got "{self.path}" with {free / 1e9:.2f} GB free, expected room for {num_bytes / 1e9:.2f} '
                "GB of draws. Take fewer, thin them, or name a folder on another disk."
            )
        self.run_id = uuid.uuid4().hex

    def admit(self, run_id: str | None, num_bytes: int) -> None:
        """Let a saved run go on here; one that was kept in memory gets the folder for itself.

        Raises:
            ValueError: if another run is here.
            OSError: as for `claim`.
        """
        if run_id is None:
            self.claim(num_bytes)
            return
        if self._state.exists():
            here = self.load()["run_id"]
            if here != run_id:
                raise ValueError(
                    f'draws_to: got "{self.path}", which holds another run ({here}), expected the draws of the saved '
                    f"one ({run_id}). Give the folder it wrote to."
                )
        self.run_id = run_id

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a run's state, in place of the last one; a crash leaves the one or the other."""
        written = self._state.with_suffix(".partial")
        torch.save(dict(state), written)
        os.replace(written, self._state)

    def load(self) -> dict[str, Any]:
        """The last state kept; its tensors stay on disk until they are used.

        Raises:
            RuntimeError: if there is none.
        """
        if not self._state.exists():
            raise RuntimeError(f'draws_to: there is no run to go on with in "{self.path}". Call run(...) first.')
        return cast(dict[str, Any], torch.load(self._state, weights_only=True, mmap=True, map_location="cpu"))
