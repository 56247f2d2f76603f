"""Devices and who operates them; see README.md beside this file."""

from examples.iot.server import app

__all__ = ["app"]
