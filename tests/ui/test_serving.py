"""The page's files: who gets them, under which policy, and how they are kept."""

import gzip
import json
import re
from pathlib import Path

import pytest
from live_server import LiveServer

from tensormeter.server.http.static_files import StaticFiles


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_programs_get_json(site: LiveServer, accept: str) -> None:
    answer = site.get("/", Accept=accept)
    assert json.loads(answer.data)["name"] == "tensormeter"


def test_browsers_get_the_page_under_a_strict_policy(site: LiveServer) -> None:
    answer = site.get("/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert answer.data.startswith(b"<!doctype html>")
    assert b"<script>" not in answer.data
    assert b"style=" not in answer.data
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def files(site: LiveServer, suffix: str) -> list[str]:
    """What the page asks for, by address."""
    page = site.get("/", Accept="text/html").data.decode()
    return re.findall(rf'"(/static/[\w-]+\.{suffix})"', page)


def test_the_page_is_asked_for_again_until_it_changes(site: LiveServer) -> None:
    first = site.get("/", Accept="text/html", Accept_Encoding="identity")
    assert first.headers["Cache-Control"] == "no-cache"
    again = site.get("/", Accept="text/html", If_None_Match=first.headers["ETag"])
    assert (again.status, again.data) == (304, b"")
    other = site.get("/", Accept="text/html", If_None_Match='"other"', Accept_Encoding="identity")
    assert (other.status, other.data) == (200, first.data)


def test_files_that_are_named_by_what_is_in_them_are_kept(site: LiveServer) -> None:
    named = files(site, "js") + files(site, "css")
    assert len(named) == 4
    for name in named:
        assert site.get(name).headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert site.get("/static/favicon.svg").headers["Cache-Control"] == "no-cache"


def test_files_travel_packed(site: LiveServer) -> None:
    sent = 0
    for name in files(site, "js"):
        plain = site.get(name, Accept_Encoding="identity")
        packed = site._http.request(
            "GET", f"{site.url}{name}", headers={"Accept-Encoding": "gzip"}, decode_content=False
        )
        assert gzip.decompress(packed.data) == plain.data
        sent += len(packed.data)
    assert sent < 80_000


@pytest.mark.parametrize("name", ["sources.sha256", "nothing.js", "..%2fpage.py", "%2e%2e/page.py"])
def test_nothing_else_is_served(site: LiveServer, name: str) -> None:
    assert site.get(f"/static/{name}").status == 404


def test_the_page_is_public_and_the_data_is_not(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, token="t0ken")
    try:
        assert server.get("/", Accept="text/html").status == 200
        assert [server.get(name).status for name in files(server, "js")] == [200] * 3
        assert server.get("/api/v1/projects").status == 401
    finally:
        server.stop()


def test_a_server_without_the_page_says_how_to_build_it(tmp_path: Path) -> None:
    page = StaticFiles(tmp_path)
    assert b"Node 20" in page._files["index.html"].body
