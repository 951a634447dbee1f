"""Numbers as they are shown: three digits, and the unit that keeps them readable."""

from __future__ import annotations


def three_digits(value: float) -> str:
    """1.23, 12.3, 123."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def milliseconds(value: float) -> str:
    """Three significant digits in the unit that keeps them readable: 8.31 us, 12.4 ms, 1.82 s."""
    scaled, unit = (value * 1e3, "us") if value < 1 else (value, "ms") if value < 1e3 else (value / 1e3, "s ")
    return f"{three_digits(scaled)} {unit}"


def size_name(size: float) -> str:
    """Bytes: 96 bytes, 768 KiB, 1.5 MiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.{4 if size >= 1000 * scale else 3}g} {unit}"
    return f"{size:.0f} bytes"


def counted(threads: int) -> str:
    """1 thread, 2 threads."""
    return f"{threads} thread{'s' * (threads > 1)}"
