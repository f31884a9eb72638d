"""How far a transfer or a long copy is, for a person."""

from __future__ import annotations

import time
from collections.abc import Callable

_EVERY = 1.0  # seconds


class Meter:
    """Counts bytes, and tells about once a second: how many of how many, how fast, how long it will take."""

    def __init__(self, total: int, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self._tell = tell
        self._clock = clock
        self._began = self._told = clock()
        self._before = 0  # bytes that an earlier transfer had brought

    def start_at(self, done: int) -> None:
        """Some bytes are there already."""
        self.done = self._before = done
        self._began = self._clock()

    def add(self, count: int) -> None:
        """More bytes went through."""
        self.done += count
        now = self._clock()
        if now - self._told >= _EVERY:
            self._told = now
            self._tell(self.text(now))

    def text(self, now: float) -> str:
        """One line."""
        speed = (self.done - self._before) / max(now - self._began, 0.001)
        left = f", {(self.total - self.done) / speed:.0f} s left" if speed else ""
        return f"{self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB, {speed / 1e6:.0f} MB/s{left}"


def size_text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
