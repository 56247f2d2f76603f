"""A chat with rooms, names, history and a typing indicator; see README.md beside this file."""

from examples.chat.server import app

__all__ = ["app"]
