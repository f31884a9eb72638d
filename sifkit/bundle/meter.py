"""How much of a long copy is done, shown in bytes."""

from __future__ import annotations

from sifkit.progress import Progress


class Meter:
    """Counts bytes, and shows them a hundred times on the way."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress = total, progress
        self._done = self._shown = 0

    def add(self, size: int) -> None:
        """Bytes that were read since the last call."""
        self._done += size
        if self._done - self._shown > self._total // 100:
            self._shown = self._done
            self._progress.line(f"{amount(self._done)} of {amount(self._total)}")


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
