"""A game with one authoritative server; see README.md beside this file."""

from examples.game.server import app

__all__ = ["app"]
