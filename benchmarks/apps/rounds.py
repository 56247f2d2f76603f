"""What the fan-out apps send: a time, which gives the delay, and padding up to the size."""

from __future__ import annotations

import time


def stamped(size: int) -> str:
    return f"{time.monotonic():.6f} ".ljust(size, "x")
