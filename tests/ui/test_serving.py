"""Tests of how the page's files are served: content negotiation, security policy, caching."""

import gzip
import json
import re
from pathlib import Path

import pytest
from live_server import LiveServer

from tensormeter.server.http.static_files import StaticFiles


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_programs_receive_json(site: LiveServer, accept: str) -> None:
    response = site.get("/", Accept=accept)
    assert json.loads(response.data)["name"] == "tensormeter"


def test_browsers_receive_the_page_with_a_strict_policy(site: LiveServer) -> None:
    response = site.get("/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert response.data.startswith(b"<!doctype html>")
    assert b"<script>" not in response.data
    assert b"style=" not in response.data
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def files(site: LiveServer, suffix: str) -> list[str]:
    """Addresses of the files that the page loads."""
    page = site.get("/", Accept="text/html").data.decode()
    return re.findall(rf'"(/static/[\w-]+\.{suffix})"', page)


def test_page_is_revalidated_by_etag(site: LiveServer) -> None:
    first = site.get("/", Accept="text/html", Accept_Encoding="identity")
    assert first.headers["Cache-Control"] == "no-cache"
    again = site.get("/", Accept="text/html", If_None_Match=first.headers["ETag"])
    assert (again.status, again.data) == (304, b"")
    other = site.get("/", Accept="text/html", If_None_Match='"other"', Accept_Encoding="identity")
    assert (other.status, other.data) == (200, first.data)


def test_hashed_files_are_cached_forever(site: LiveServer) -> None:
    named = files(site, "js") + files(site, "css")
    assert len(named) >= 4
    for name in named:
        assert site.get(name).headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert site.get("/static/favicon.svg").headers["Cache-Control"] == "no-cache"


def test_files_are_compressed_and_small(site: LiveServer) -> None:
    sent = 0
    for name in files(site, "js"):
        plain = site.get(name, Accept_Encoding="identity")
        packed = site.http.request(
            "GET", f"{site.url}{name}", headers={"Accept-Encoding": "gzip"}, decode_content=False
        )
        assert gzip.decompress(packed.data) == plain.data
        sent += len(packed.data)
    assert sent < 96_000


@pytest.mark.parametrize("name", ["sources.sha256", "nothing.js", "..%2fpage.py", "%2e%2e/page.py"])
def test_nothing_else_is_served(site: LiveServer, name: str) -> None:
    assert site.get(f"/static/{name}").status == 404


def test_the_page_is_public_and_the_data_is_not(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, token="t0ken")
    try:
        assert server.get("/", Accept="text/html").status == 200
        assert {server.get(name).status for name in files(server, "js")} == {200}
        assert server.get("/api/v1/projects").status == 401
    finally:
        server.stop()


def test_server_without_the_page_explains_how_to_build_it(tmp_path: Path) -> None:
    page = StaticFiles(tmp_path)
    assert b"unset TENSORMETER_SKIP_PAGE" in page._files["index.html"].body
