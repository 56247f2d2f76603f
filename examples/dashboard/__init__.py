"""A dashboard of the process it runs in; see README.md beside this file."""

from examples.dashboard.server import app

__all__ = ["app"]
