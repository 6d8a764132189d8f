"""Arguments of `log_artifact`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import tensormeter
from tensormeter.record.media.artifact import Artifact
from tensormeter.record.values.classify import Refused


def packed(place: Any, name: Any = None, kind: Any = "model", aliases: Any = ()) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Artifact(place, name, kind, aliases).pack().body)
    return content


def test_types_and_aliases_follow_the_rule_for_names() -> None:
    artifact = packed("/a", kind=" mo\ndel ", aliases=["best\u202e", "best", "x" * 200])
    assert (artifact["type"], artifact["aliases"]) == ("mo del", ["best", "x" * 128])


def test_places_become_absolute_paths_or_masked_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert packed("a/../b.pt") == {"name": "b.pt", "type": "model", "aliases": [], "path": str(tmp_path / "b.pt")}
    assert packed(Path("/x/y/"))["name"] == "y"
    assert packed(b"/x/\xff.pt")["name"] == "\\udcff.pt"
    assert packed("file:///x/a%20b")["path"] == "/x/a b"
    assert packed("/")["name"] == "/"
    uri = packed("s3://bucket/a/b.pt?X-Amz-Signature=0123456789abcdef&versionId=3", aliases={"best": 1})
    assert uri["uri"] == "s3://bucket/a/b.pt?X-Amz-Signature=***&versionId=3"
    assert (uri["name"], uri["aliases"]) == ("b.pt", ["best"])
    assert packed("hf://org/model")["name"] == "model"
    assert packed("gs://bucket")["name"] == "bucket"


@pytest.mark.parametrize("place", ["", "a\0b", None, 3, "x" * 5000, object()])
def test_other_places_are_refused(place: Any) -> None:
    with pytest.raises(Refused):
        packed(place)


def test_log_artifact_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    class Bad:
        def __fspath__(self) -> str:
            raise ValueError("no path")

        def __str__(self) -> str:
            raise ValueError("no text")

    gone = tmp_path / "gone"
    gone.mkdir()
    settings = {"mode": "offline", "directory": tmp_path, "agent": "off"}
    with tensormeter.init("artifacts", settings=settings) as run:
        run.log_artifact(Bad())
        run.log_artifact("a", Bad(), Bad(), Bad(), Bad())  # type: ignore[arg-type]
        run.log_artifact("e", aliases=5)  # type: ignore[arg-type]
        run.log_artifact("b", aliases=map(str, range(100)))
        run.log_artifact("c", step="x")  # type: ignore[arg-type]
        run.log_artifact("https://user:pw123456@example.com/" + "x" * 5000)
        monkeypatch.chdir(gone)
        gone.rmdir()
        run.log_artifact("relative")
        os.chdir(tmp_path)
    assert "cannot read its arguments (ValueError: no path)" in caplog.text
    assert "expected aliases as a list of strings" in caplog.text
    assert "more than 64 aliases" in caplog.text
    assert "the working folder is unknown" in caplog.text
    assert "pw123456" not in caplog.text


def test_an_invalid_step_is_named_and_counts_no_loss(tmp_path: Path, caplog: Any) -> None:
    settings = {"directory": tmp_path, "mode": "offline", "agent": "off"}
    with tensormeter.init("artifacts", settings=settings) as run:
        run.log({"loss": 1.0}, 5)
        run.log_artifact("checkpoint.pt", step="seven")  # type: ignore[arg-type]
    (warning,) = [record.message for record in caplog.records if "checkpoint.pt" in record.message]
    assert warning.startswith(
        "log_artifact('checkpoint.pt'): ignored the step 'seven', and used that of the last row: "
    )
    assert "not recorded" not in caplog.text
