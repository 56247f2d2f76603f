"""``scripts/conformance``: an echo app on the engine, and the suite against it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import nexios_trio
from conformance.report import bad, counts, markdown, shortened

HERE = Path(__file__).parent

GROUPS = {
    "core": ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"],
    "limits": ["9.*"],
    # Of the 18 series, the first six sizes and one that takes many messages of mixed content.
    "deflate": ["12.*.[1-6]", "12.*.11", "13.*.[1-6]", "13.*.11"],
    "deflate-all": ["12.*", "13.*"],
}

START = 60.0
"""Seconds for the server to say where it runs, and to end."""


@contextmanager
def serving(server: str) -> Iterator[str]:
    """The echo app as a process of its own, on a free port; gives its URL."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [
                str(Path(sysconfig.get_path("scripts")) / "nexios-trio"),
                *("run", "conformance.echo:app", "--server", server, "--bind", "127.0.0.1:0", "-w", "0"),
            ],
            cwd=HERE.parent,
            stderr=log,
        )
        try:
            yield _url(process, log)
        finally:
            process.terminate()
            try:
                process.wait(START)
            finally:
                process.kill()


def _url(process: subprocess.Popen[bytes], log: Any) -> str:
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        if found := re.search(r"Running on http(://\S+)", log.read()):
            return f"ws{found[1]}"
        time.sleep(0.05)
    log.seek(0)
    raise click.ClickException(f"the server has not started:\n{log.read()}")


def run_suite(python: Path, url: str, patterns: list[str]) -> dict[str, Any]:
    """The results of these cases, by their numbers; raises where the suite itself has failed."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        done = subprocess.run(
            [str(python), str(HERE / "suite.py"), url, "--json", str(results), "--cases", *patterns],
            env={
                key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE"))
            },
            check=False,
        )
        if done.returncode:
            raise click.ClickException(f"the suite has ended with {done.returncode}")
        found: dict[str, Any] = json.loads(results.read_text())
        return found


def versions(python: Path) -> dict[str, str]:
    """Of what takes part."""
    code = (
        "import importlib.metadata as m; print(*map(m.version, ('autobahntestsuite', 'autobahn', 'twisted')))"
    )
    theirs = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    suite, autobahn, twisted = theirs.split()
    return {
        "nexios_trio": nexios_trio.__version__,
        "trio": importlib.metadata.version("trio"),
        "hypercorn": importlib.metadata.version("hypercorn"),
        "Python": platform.python_version(),
        "autobahntestsuite": suite,
        "autobahn": autobahn,
        "twisted": twisted,
    }


@click.command()
@click.argument("groups", nargs=-1, type=click.Choice([*GROUPS]))
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The interpreter of the environment with the suite; scripts/conformance gives it.",
)
@click.option("--server", type=click.Choice(["engine", "hypercorn"]), default="engine", show_default=True)
@click.option("--cases", multiple=True, help="Numbers, such as 6.4.*, instead of groups.")
@click.option("--write", is_flag=True, help="Write conformance/SUMMARY.md and summary.json.")
def main(groups: tuple[str, ...], python: Path, server: str, cases: tuple[str, ...], write: bool) -> None:
    """Run Autobahn|Testsuite against the engine; exit code 1 if a case is FAILED or NON-STRICT.

    GROUPS: core (sections 1 to 7 and 10; some 10 s), limits (9), deflate (of each series of 12 and 13 seven
    cases), deflate-all (all of them; minutes). Default: core and limits, and deflate where the server has it.
    """
    if not groups and not cases:
        groups = ("core", "limits", *(("deflate",) if hasattr(nexios_trio, "Deflate") else ()))
    patterns = [*cases, *(pattern for group in groups for pattern in GROUPS[group])]
    with serving(server) as url:
        results = run_suite(python, url, patterns)
    for section, kinds in counts(results).items():
        click.echo(f"section {section:>2}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    if write:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        (HERE / "SUMMARY.md").write_text(markdown(results, versions(python), date))
        summary = {
            "date": date,
            "versions": versions(python),
            "sections": counts(results),
            "cases": shortened(results),
        }
        (HERE / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=False) + "\n")
    wrong = bad(results)
    for number in wrong:
        result = results[number]
        click.echo(
            f"{number}: {result['behavior']}, close {result['close']} ({result['code']}): "
            f"{result['result']} {result['result_close']}",
            err=True,
        )
    click.echo(f"{len(results)} cases, {len(results) - len(wrong)} as they should be")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(prog_name="scripts/conformance")
