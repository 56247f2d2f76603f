"""A text that many write at once; see README.md beside this file."""

from examples.collab.server import app

__all__ = ["app"]
