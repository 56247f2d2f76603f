"""Serving: hypercorn's Trio worker, tuned for WebSockets, and our engine beside it."""

from nexios_trio.server.fast_lane import install_fast_lane

__all__ = ["install_fast_lane"]
