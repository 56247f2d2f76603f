"""The engine of several processes and machines: a Redis, or Valkey, server. Extra ``redis``."""

from nexios_trio.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
