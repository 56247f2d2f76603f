"""Serving: hypercorn's Trio worker, with what a WebSocket app needs set around it."""
