"""Who watches an app: logs, health, and in modules of their own, which need extras, metrics and traces."""

from nexios_trio.monitoring.health import Health
from nexios_trio.monitoring.logs import AccessLog, JSONFormatter

__all__ = ["AccessLog", "Health", "JSONFormatter"]
