"""Nodes for ``scripts/bench cluster``: one module for each engine, driven alike by ``__main__``.

Each has ``sending``, which gives a coroutine function of a group and a payload, and ``receiving``, which
follows groups and calls back with each payload: where the library knows both and would hand them to its own
members.
"""
