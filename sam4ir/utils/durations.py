"""Durations in words."""

from __future__ import annotations


def in_time(seconds: float) -> str:
    """Return a duration rounded as people say it: '0.042 s', '41 s', '12 min', '3.5 h', '2.1 days'."""
    if seconds < 9.5:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{round(seconds)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
