"""Files of the web page, built from ui/ into static/, loaded once, and served with a strict security policy."""

import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.server.http.errors import error_response
from tensormeter.server.http.html_frame import HTML_FRAME, html_frame

__all__ = ["STATIC_PREFIX", "StaticFiles", "wants_page"]

STATIC_PREFIX: Final = "/static/"

_STATIC: Final = Path(__file__).parents[1] / "static"

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HEADERS: Final = {
    # Allow only this origin, no inline scripts or styles, and no markup from strings (Trusted Types), so that, for
    # example, a run's name is never interpreted as markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
        "connect-src 'self'; frame-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Vary": "Accept, Accept-Encoding",
}

# For files without a hash in their names: browsers revalidate them each time, and get status 304 unless the server was
# upgraded.
_REVALIDATE: Final = "no-cache"

# For files with a hash of the content in their names: their content never changes.
_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_HASHED: Final = re.compile(r"-[0-9A-Z]{8}\.\w+$")

_NOT_BUILT: Final = b"""<!doctype html><html lang="en"><title>tensormeter</title>
<h1>The web page is not built</h1>
<p>The server is running; its API is at <a href="/api/v1/runs">/api/v1/runs</a>.</p>
<p>To build the page from a checkout, unset TENSORMETER_SKIP_PAGE and run <code>pip install -e .</code> again.</p></html>"""


@dataclass(frozen=True)
class _File:
    body: bytes
    compressed: bytes
    media_type: str
    etag: str
    caching: str


class StaticFiles:
    """Handlers for the page's files. Changes on disk take effect when the server is restarted."""

    def __init__(self, folder: Path = _STATIC) -> None:
        paths = folder.iterdir() if folder.is_dir() else ()
        self._files = {path.name: _load(path) for path in paths if path.suffix in _MEDIA_TYPES}
        self._files.setdefault("index.html", _file(_NOT_BUILT, "index.html"))

    def routes(self) -> list[Route]:
        """Return the handlers' routes, except `/`, where browsers get the page and other clients get JSON."""
        return [Route(STATIC_PREFIX + "{name}", self.asset)]

    def index(self, request: Request) -> Response:
        """Return the page itself."""
        return _answer(request, self._files["index.html"])

    async def asset(self, request: Request) -> Response:
        """Return a script, style sheet or image, or the frame for HTML documents."""
        if request.path_params["name"] == HTML_FRAME:
            return html_frame()
        file = self._files.get(request.path_params["name"])
        if file is None:
            return error_response(request.scope, 404, "not_found", "the web page has no file of this name")
        return _answer(request, file)


def wants_page(request: Request) -> bool:
    """Return whether the client that requests `/` is a browser. Other clients get JSON."""
    return "text/html" in request.headers.get("accept", "")


def _answer(request: Request, file: _File) -> Response:
    headers = _HEADERS | {"ETag": file.etag, "Cache-Control": file.caching}
    client_etags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in client_etags:
        return Response(status_code=304, headers=headers)
    # `gzip;q=0` refuses gzip. Browsers do not send it, and other clients that send it get the uncompressed file.
    if "gzip" in request.headers.get("accept-encoding", "") and "gzip;q=0" not in request.headers["accept-encoding"]:
        return Response(file.compressed, headers=headers | {"Content-Encoding": "gzip"}, media_type=file.media_type)
    return Response(file.body, headers=headers, media_type=file.media_type)


def _load(path: Path) -> _File:
    return _file(path.read_bytes(), path.name)


def _file(body: bytes, name: str) -> _File:
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    caching = _IMMUTABLE if _HASHED.search(name) else _REVALIDATE
    return _File(body, gzip.compress(body, mtime=0), _MEDIA_TYPES[Path(name).suffix], etag, caching)
