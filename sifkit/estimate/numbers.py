"""Numbers that a config may say, as far as one can reckon with them. Pure."""

from __future__ import annotations

from typing import Any, TypeGuard

MOST = 10**12  # beyond it no size, count or factor of a run makes sense


def is_number(value: Any) -> TypeGuard[int | float]:
    """No truth value, no NaN, nothing infinite or beyond all measure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def is_count(value: Any) -> TypeGuard[int]:
    """A whole number from 1 on."""
    return isinstance(value, int) and is_number(value) and value >= 1
