"""The folder of a run whose draws are on disk: the draws while they come, and every so often the run itself."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

if sys.platform != "win32":
    import fcntl

_STATE, _LOCK = "state.pt", "lock"


class RunFolder:
    """A folder with one run in it: `draws/` and `warmup/`, an array for each name, `state.pt`, and a file to lock.

    Attributes:
        path: the folder.
        run_id: tells the run from any other.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run_id = ""
        self._locked: IO[str] | None = None

    @property
    def _state(self) -> Path:
        return self.path / _STATE

    def lock(self) -> None:
        """Keep other runs out until `unlock`, or until this process ends.

        Raises:
            BlockingIOError: if another run is under way here.
        """
        if self._locked is not None or sys.platform == "win32":
            return
        file = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise BlockingIOError(
                error.errno,
                "draws_to: another run is writing its draws here at this moment. Let it end, or name another folder",
                str(self.path),
            ) from error
        self._locked = file

    def unlock(self) -> None:
        """Let another run go on here."""
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def claim(self, num_bytes: int) -> None:
        """Lock the folder for a new run, whose draws will take so many bytes.

        Raises:
            FileExistsError: if there is anything in it.
            BlockingIOError: as for `lock`.
            OSError: if it cannot be written to, or its disk has no room.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(file.name != _LOCK for file in self.path.iterdir())
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
        self.lock()
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
