"""The command ``nexios-trio``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from importlib import resources
from typing import Any, Final

import click
from starlette.routing import BaseRoute, Mount

from nexios_trio import __version__
from nexios_trio.application import NexiosApp
from nexios_trio.cli.bench import bench
from nexios_trio.cli.connect import connect
from nexios_trio.cli.new import new
from nexios_trio.exceptions import WrongValueError
from nexios_trio.routing.handlers import name_of
from nexios_trio.security.auth import AnyOf
from nexios_trio.server.command import run as run_server
from nexios_trio.server.hypercorn import DRAIN_WINDOW
from nexios_trio.server.loading import AppLoadError, load_app
from nexios_trio.server.watchdog import SLOW_CALLBACK

__all__ = ["main"]


_HELP: Final = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
@click.version_option(__version__, prog_name="nexios-trio")
def main() -> None:
    """Make, serve, inspect and try nexios_trio apps."""


@main.command(context_settings={**_HELP, "ignore_unknown_options": True})
@click.argument("application", metavar="MODULE:APP")
@click.argument("hypercorn_options", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--drain-window",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help=f"Spread the closing of connections at shutdown over this time.  [default: {DRAIN_WINDOW:g}]",
)
@click.option(
    "--drain-notice",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Say that the worker is not ready for so long before it stops accepting connections.  [default: 0]",
)
@click.option(
    "--server",
    type=click.Choice(["hypercorn", "engine"]),
    default="engine",
    show_default=True,
    help="Who serves plain WebSockets: our engine, or hypercorn. All else is hypercorn's.",
)
@click.option(
    "--broker",
    metavar="URL",
    help="The engine behind the groups of an app that names none itself, such as redis://127.0.0.1. Better "
    "in the environment, as NEXIOS_BROKER, if it holds a password.  [default: memory://]",
)
@click.option(
    "--slow-callback",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Log who keeps the event loop from running for so long; 0: nobody is looked for.  "
    f"[default: {SLOW_CALLBACK:g}]",
)
def run(
    application: str,
    hypercorn_options: tuple[str, ...],
    drain_window: float | None,
    drain_notice: float | None,
    server: str,
    broker: str | None,
    slow_callback: float | None,
) -> None:
    """Serve an app: plain WebSockets by our engine, all else by hypercorn's Trio worker around it.

    All options of the hypercorn command are taken and mean the same, among them: --bind HOST:PORT,
    --workers N, --reload, --config FILE, --certfile, --keyfile, --access-logfile FILE, --log-level LEVEL,
    --websocket-ping-interval SECONDS; see `hypercorn --help`.

    Beyond hypercorn: pings and timeouts come from the app's Heartbeat; SIGTERM and Ctrl-C stop
    accepting, close every connection with 1012 (service restart), give handlers their grace and exit
    with 0. A second Ctrl-C does not wait.
    """
    fast_lane = server == "engine"
    if broker is not None:
        try:
            NexiosApp(broker=broker)
        except WrongValueError as error:
            raise click.BadParameter(str(error), param_hint="--broker") from None
        os.environ["NEXIOS_BROKER"] = broker  # workers are processes of their own, and inherit it
    options = list(hypercorn_options)
    code = run_server(
        application,
        options,
        drain_window,
        drain_notice=drain_notice,
        fast_lane=fast_lane,
        slow_callback=slow_callback,
    )
    sys.exit(code)


@main.command(context_settings=_HELP)
@click.argument("application", metavar="MODULE:APP")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per route.")
def routes(application: str, as_json: bool) -> None:
    """Print the routes of an app, in the order in which they are tried.

    The routes of a mounted app are below its mount, if it is a NexiosApp or a Starlette.
    """
    try:
        app = load_app(application)
    except AppLoadError as error:
        raise click.ClickException(str(error)) from None
    if not isinstance(app, NexiosApp):
        raise click.ClickException(
            f'"{application}" is a {type(app).__name__}; routes are read from a NexiosApp'
        )
    rows = _rows(app)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    columns = ("kind", "path", "name", "handler", "authenticate", "requires", "middleware")
    table = [columns, *(tuple(row[column] for column in columns) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@main.command("redis-script", context_settings=_HELP)
def redis_script() -> None:
    """Print the script by which programs in any language publish to groups over Redis.

    Its first lines say what it takes; docs/scaling.md shows the call.
    """
    click.echo(_publish_script(), nl=False)


def _publish_script() -> str:
    lua = resources.files("nexios_trio.brokers").joinpath("redis", "lua", "publish.lua")
    return lua.read_text("utf-8")


for _command in (bench, connect, new):
    main.add_command(_command)


def _rows(app: NexiosApp, prefix: str = "") -> list[dict[str, str]]:
    rows = [
        {
            "kind": "WebSocket",
            "path": prefix + resolved.pattern.path,
            "name": resolved.route.name,
            "handler": _where(resolved.route.handler),
            "authenticate": _authenticator(resolved.rules.authenticate),
            "requires": ", ".join(resolved.rules.requires),
            "middleware": ", ".join(map(_middleware_name, resolved.middleware)),
        }
        for resolved in app.ws_router.routes
    ]
    return rows + _http_rows(app.routes, prefix)


def _http_rows(routes: Iterable[BaseRoute], prefix: str) -> list[dict[str, str]]:
    rows = []
    for route in routes:
        path = prefix + getattr(route, "path", "")
        methods = sorted(getattr(route, "methods", None) or ())
        target = getattr(route, "endpoint", None) or getattr(route, "app", None)
        rows.append(
            {
                "kind": ",".join(methods) or type(route).__name__,
                "path": path,
                "name": getattr(route, "name", None) or "",
                "handler": _where(target),
                "authenticate": "",
                "requires": "",
                "middleware": "",
            }
        )
        if isinstance(target, NexiosApp):
            rows += _rows(target, path)
        elif isinstance(route, Mount):
            rows += _http_rows(route.routes, path)
    return rows


def _where(handler: Any) -> str:
    module = getattr(handler, "__module__", None) or type(handler).__module__
    return f"{module}.{getattr(handler, '__qualname__', None) or name_of(handler)}"


def _authenticator(authenticator: Any) -> str:
    """Its class, or the name of a function; never its repr, which may hold a secret."""
    if authenticator is None:
        return ""
    if isinstance(authenticator, AnyOf):
        return " | ".join(map(_authenticator, authenticator.authenticators))
    return name_of(authenticator)


def _middleware_name(middleware: Any) -> str:
    return name_of(getattr(middleware, "cls", middleware))
