"""Programs that do not build on one another, run at the same time where the node has processors for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 4  # at once: each imports torch, which takes a processor and a gigabyte or two of memory


def processors() -> int:
    """That this process may use: a job's share, not the node's."""
    return len(os.sched_getaffinity(0))


class Ahead(Generic[T]):
    """Questions by name, asked as soon as they are known, answered when they are needed."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._futures: dict[str, Future[T]] = {}

    def ask(self, name: str, question: Callable[[], T]) -> None:
        """Ask at once, or as soon as a processor is free."""
        self._futures[name] = self._pool.submit(question)

    def answer(self, name: str) -> T:
        """Wait for it. Raises what the question raised."""
        return self._futures[name].result()


@contextmanager
def pool(stop: Callable[[], None], workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads for programs; whatever ends the block early (Ctrl-C) calls `stop`, which must end those running."""
    executor = ThreadPoolExecutor(workers or min(MOST, processors()))
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        stop()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def together(tasks: Sequence[Callable[[], T]], stop: Callable[[], None], workers: int | None = None) -> list[T]:
    """The results of all tasks, in their order."""
    with pool(stop, workers) as executor:
        return [future.result() for future in [executor.submit(task) for task in tasks]]
