"""The live dashboard: what happens in one worker, in a browser."""

from nexios_trio.monitoring.dashboard.app import Dashboard

__all__ = ["Dashboard"]
