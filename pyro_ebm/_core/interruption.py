"""Ctrl-C at a moment that loses nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether it was asked for.

    Attributes:
        asked: since the context was entered.
    """

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def deferred_interruption() -> Iterator[Interruption]:
    """Let the first Ctrl-C only be noted, for a loop to look at when a step is done; a second one breaks in.

    Signals reach the main thread alone: in another nothing is changed.
    """
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
