"""The ground on which `sifkit check` is tried, for tests of the command too."""

from __future__ import annotations

from tests.check.conftest import ground

__all__ = ["ground"]
