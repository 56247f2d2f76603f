"""Live video and a chat; see README.md beside this file."""

from examples.stream.server import app

__all__ = ["app"]
