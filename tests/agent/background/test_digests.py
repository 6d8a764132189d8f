"""Sizes and digests of artifacts."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tensormeter.agent.background.artifact import NoDigestError, digest, list_files


def no_pause(seconds: float) -> None:
    assert seconds >= 0


def test_a_file_has_its_sha256_digest_and_is_read_no_faster_than_the_rate(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    data = os.urandom(3_500_000)
    path.write_bytes(data)
    pauses: list[float] = []
    listing = list_files(str(path))
    assert (listing.size, len(listing.files), listing.is_folder) == (len(data), 1, False)
    assert digest(str(path), listing, pauses.append, rate=1000.0) == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert len(pauses) == 4
    assert 3_000 < pauses[-1] <= 3_500


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_digest_of_a_folder_is_that_of_the_lines_of_sha256sum(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "nested").mkdir(parents=True)
    (folder / "b.bin").write_bytes(b"b" * 1000)
    (folder / "nested" / "a b").write_bytes(b"a")
    (folder / "Ü").write_bytes(b"")
    (folder / "link").symlink_to(folder / "b.bin")
    (folder / "broken").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    listing = list_files(str(folder))
    assert (listing.size, len(listing.files), listing.is_folder) == (2001, 4, True)
    names = sorted((file.name for file in listing.files), key=os.fsencode)
    printed = subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True, timeout=300).stdout
    assert digest(str(folder), listing, no_pause) == f"sha256:{hashlib.sha256(printed).hexdigest()}"


def test_an_artifact_without_digest_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(NoDigestError, match="does not exist"):
        list_files(str(tmp_path / "nothing"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NoDigestError, match="neither a file nor a folder"):
        list_files(str(tmp_path / "pipe"))
    path = tmp_path / "model.pt"
    path.write_bytes(b"x" * 5_000_000)
    listing = list_files(str(path))

    def grow(_: float) -> None:
        with open(path, "ab") as file:
            file.write(b"y")

    with pytest.raises(NoDigestError, match="changed while"):
        digest(str(path), listing, grow)
    with pytest.raises(NoDigestError, match="changed before"):
        digest(str(path), listing, no_pause)

    def replace(_: float) -> None:
        (tmp_path / "new").write_bytes(b"z" * listing.size)
        os.replace(tmp_path / "new", path)

    with pytest.raises(NoDigestError, match="changed while"):
        digest(str(path), list_files(str(path)), replace)
    whole = list_files(str(tmp_path))

    def add(_: float) -> None:
        (tmp_path / "added").touch()

    with pytest.raises(NoDigestError, match="changed while"):
        digest(str(tmp_path), whole, add)
    path.unlink()
    with pytest.raises(NoDigestError, match="removed"):
        digest(str(path), listing, no_pause)
