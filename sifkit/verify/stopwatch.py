"""Where a training run spends its time, told by when its log says what."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

# What ends each phase. Source: llamafactory/hparams/parser.py (the rank), transformers/trainer.py (the rest).
_ENDS = (
    ("start and imports", re.compile(r"[Pp]rocess rank: 0,")),
    ("data and model", re.compile(r"\*{5} Running training \*{5}")),
    ("first step", re.compile(r"^\{'loss'")),
    ("other steps", re.compile(r"^Training completed")),
)
_REST = "saving, evaluation, plots"


class Stopwatch:
    """Fed with the lines of a run's output as they come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._ended: dict[str, float] = {}
        self.steps: list[float] = []  # seconds since the start, of each step's line in the log

    def line(self, text: str) -> None:
        """One line of output."""
        said = text.strip()
        now = self._clock() - self._began
        if said.startswith("{'loss'"):
            self.steps.append(now)
        for phase, pattern in _ENDS:
            if phase not in self._ended and pattern.search(said):
                self._ended[phase] = now
                return

    def phases(self) -> dict[str, float]:
        """Seconds of each phase that came to its end, and of what came after the last of them until now."""
        spent: dict[str, float] = {}
        before = 0.0
        for phase, _ in _ENDS:
            if phase in self._ended:
                spent[phase] = round(self._ended[phase] - before, 1)
                before = self._ended[phase]
        return {**spent, _REST: round(self._clock() - self._began - before, 1)}

    def steps_per_second(self, warm: int) -> float | None:
        """Of the steps after the first `warm`, which load kernels and fill caches; None when there are too few."""
        timed = self.steps[warm - 1 :] if warm else [0.0, *self.steps]
        return (len(timed) - 1) / (timed[-1] - timed[0]) if len(timed) > 1 and timed[-1] > timed[0] else None
