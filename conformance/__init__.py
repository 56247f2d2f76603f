"""Autobahn|Testsuite against the engine: ``scripts/conformance``."""
