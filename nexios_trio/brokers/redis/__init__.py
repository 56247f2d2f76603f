"""The engine of several processes and machines: a Redis, or Valkey, server. Extra ``redis``."""
