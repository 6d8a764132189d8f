"""The page's files: who gets them, under which policy, and how they are kept."""

import gzip
import json
from pathlib import Path

import pytest
from live_server import LiveServer

from tensormeter.server.page import Page


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


def test_files_are_kept_until_they_change(site: LiveServer) -> None:
    first = site.get("/static/app.js", Accept_Encoding="identity")
    again = site.get("/static/app.js", If_None_Match=first.headers["ETag"])
    assert (again.status, again.data) == (304, b"")
    other = site.get("/static/app.js", If_None_Match='"other"', Accept_Encoding="identity")
    assert (other.status, other.data) == (200, first.data)


def test_files_travel_packed(site: LiveServer) -> None:
    plain = site.get("/static/app.js", Accept_Encoding="identity")
    packed = site._http.request(
        "GET", f"{site.url}/static/app.js", headers={"Accept-Encoding": "gzip"}, decode_content=False
    )
    assert gzip.decompress(packed.data) == plain.data
    assert len(packed.data) < 80_000


@pytest.mark.parametrize("name", ["sources.sha256", "nothing.js", "..%2fpage.py", "%2e%2e/page.py"])
def test_nothing_else_is_served(site: LiveServer, name: str) -> None:
    assert site.get(f"/static/{name}").status == 404


def test_the_page_is_public_and_the_data_is_not(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, token="t0ken")
    try:
        assert server.get("/", Accept="text/html").status == 200
        assert server.get("/static/app.js").status == 200
        assert server.get("/api/v1/projects").status == 401
    finally:
        server.stop()


def test_a_server_without_the_page_says_how_to_build_it(tmp_path: Path) -> None:
    page = Page(tmp_path)
    assert b"Node 20" in page._files["index.html"].body
