"""How often a transfer is taken up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sifkit.registry import Lost

_WAITS = (1.0, 2.0, 5.0, 10.0, 20.0)  # seconds, after one, two, … attempts that brought nothing


@dataclass
class Patience:
    """Counts attempts that brought nothing; waits longer after each."""

    say: Callable[[str], None]
    sleep: Callable[[float], None]
    waits: tuple[float, ...] = _WAITS
    _failed: int = field(default=0, init=False)

    def after(self, lost: Lost, *, progressed: bool, kept: str, again: str) -> None:
        """Wait, or raise `Lost` with what is `kept` and how to go on, when there were too many such attempts."""
        self._failed = 0 if progressed else self._failed + 1
        if self._failed >= len(self.waits):
            raise Lost(f"{lost.message}; {kept}", f"{again}; {lost.fix}" if lost.fix else again) from lost
        seconds = self.waits[self._failed]
        self.say(f"{lost.message}; trying again in {seconds:.0f} s")
        self.sleep(seconds)
