"""Where benchmarks work: a directory below TMPDIR that is gone afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch() -> Iterator[Path]:
    """In /var/tmp where TMPDIR says nothing: /tmp may be memory. Others may come to what is in it."""
    with tempfile.TemporaryDirectory(prefix="sifkit-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
        Path(work).chmod(0o711)
        yield Path(work)
