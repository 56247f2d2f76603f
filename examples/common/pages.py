"""A page and its files, under a policy that leaves nothing to inline scripts or other hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from nexios_trio import NexiosApp

SHARED = Path(__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Files(StaticFiles):
    """Static files with our headers; a browser asks each time whether they have changed."""

    def __init__(self, directory: Path, headers: dict[str, str]) -> None:
        super().__init__(directory=directory)
        self._headers = headers

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(self._headers)
        return response


def serve_page(app: NexiosApp, folder: Path, *, policy: str = "") -> None:
    """Serve ``folder / "index.html"`` at ``/``, the folder at ``/static``, the shared files at ``/common``.

    ``policy`` is added to the Content-Security-Policy, such as ``"media-src blob:"``.
    """
    headers = {
        "Content-Security-Policy": f"{POLICY}; {policy}" if policy else POLICY,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    @app.get("/")
    async def page(_request: Request) -> FileResponse:
        return FileResponse(folder / "index.html", headers=headers)

    app.mount("/static", Files(folder, headers))
    app.mount("/common", Files(SHARED, headers))
