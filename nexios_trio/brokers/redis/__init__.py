"""The engine of several processes and machines: a Redis, or Valkey, server. Extra ``redis``."""

try:
    from nexios_trio.brokers.redis.broker import RedisBroker
except ModuleNotFoundError as missing:
    if missing.name != "hiredis":
        raise
    raise ImportError(
        f'Redis needs hiredis: pip install "nexios-trio[redis]" ({missing})', name=missing.name
    ) from missing

__all__ = ["RedisBroker"]
