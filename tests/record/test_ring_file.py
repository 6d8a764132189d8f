"""The ring file: making it, opening it, refusing what is none, and knowing whether its writer lives."""

import os
import resource
import signal
import struct
from pathlib import Path

import pytest

from support.forks import call_in_child
from support.processes import run_python
from tensormeter.errors import RingError
from tensormeter.ring.file import RingFile, dictionary_file
from tensormeter.ring.format import Drop, EntryKind, HeaderWord, LaneWord, State
from tensormeter.ring.layout import Column, Layout, Stream


@pytest.fixture
def path(tmp_path):
    return tmp_path / "process.ring"


@pytest.fixture
def small(path):
    ring = RingFile.create(path, {"resource": {"a": 1}}, buffer_bytes=1 << 16, lanes=3)
    yield ring
    ring.release()


def test_a_created_file_can_be_opened(small, path):
    opened = RingFile.open(path)
    assert list(opened.entries()) == [(EntryKind.METADATA, {"resource": {"a": 1}})]
    assert opened.process == "process"
    assert opened.state is State.OPEN
    assert opened.words[HeaderWord.WRITER_PID] == os.getpid()
    assert opened.lanes == small.lanes
    assert opened.drops() == {}
    assert opened.head_positions() == [0, 0, 0]


def test_lanes_do_not_overlap(small):
    end = 4096
    for start, size in small.lanes:
        assert start == end
        end = start + 128 + size
    assert end == len(small.buffer)
    assert small.lanes[0][1] > small.lanes[1][1] == small.lanes[2][1]


def test_the_file_is_private_and_reserved(small, path):
    status = path.stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 >= status.st_size
    assert sorted(file.name for file in path.parent.iterdir()) == ["process.lock", "process.names", "process.ring"]


def test_entries_come_once_and_in_order(small, path):
    opened = RingFile.open(path)
    assert len(list(opened.entries())) == 1
    layouts = [Layout.of_gauges(i, (f"name{i}",), "d") for i in range(1, 4)]
    assert all(small.add_layout(layout, [layout.id]) for layout in layouts[:2])
    assert [entry["id"] for _, entry in opened.entries()] == [1, 2]
    assert small.add_layout(layouts[2], [3])
    streams = {3: Stream("name3")}
    assert [Layout.from_json(entry, streams) for _, entry in opened.entries()] == [layouts[2]]
    assert list(opened.entries()) == []


def test_a_layout_survives_the_dictionary(small, path):
    stream = Stream(
        "h", "histogram", "s", "how long", (("a", 1), ("b", (True, False))), ("lib", "1", "", (("k", 0.5),)), (0.1, 2.0)
    )
    layout = Layout(7, (Column(stream, "d"), Column(Stream("x"), "X", 12)), stepped=False)
    assert small.add_streams(5, [stream.to_entry(), "x"])
    assert small.add_layout(layout, [5, 6])
    *_, (_, numbered), (kind, entry) = RingFile.open(path).entries()
    streams = dict(enumerate(map(Stream.from_entry, numbered["streams"]), numbered["first"]))
    assert kind is EntryKind.LAYOUT
    assert Layout.from_json(entry, streams) == layout
    assert layout.row_bytes == 8 * (4 + 1 + 12)


def test_the_dictionary_grows(small, path):
    opened, names = RingFile.open(path), [f"{'x' * 200}{number}" for number in range(20_000)]
    list(opened.entries())
    for first in range(0, len(names), 1000):
        assert small.add_streams(first, names[first : first + 1000])
    assert [name for _, entry in opened.entries() for name in entry["streams"]] == names
    status = dictionary_file(path).stat()
    assert status.st_blocks * 512 >= status.st_size >= 4 << 20


def test_entries_that_were_not_published_are_read_after_the_writer_has_gone(small, path):
    published = small.words[HeaderWord.DICTIONARY_END]
    assert small.add_streams(0, ["a"])
    assert small.add_streams(1, ["b"])
    contents = bytearray(dictionary_file(path).read_bytes())
    for byte in range(published, published + 48):  # as if the writer had died during the first of them
        contents[byte] = 0
    dictionary_file(path).write_bytes(contents)
    small.words[HeaderWord.DICTIONARY_END] = published
    opened = RingFile.open(path)
    assert [kind for kind, _ in opened.entries()] == [EntryKind.METADATA]
    assert [entry["streams"] for _, entry in opened.entries(unpublished=True)] == [["b"]]


def test_a_damaged_entry_does_not_hide_later_ones(small, path):
    start = small.words[HeaderWord.DICTIONARY_END]
    assert small.add_streams(0, ["a"])
    assert small.add_streams(1, ["b"])
    contents = bytearray(dictionary_file(path).read_bytes())
    contents[start + 20] ^= 1
    dictionary_file(path).write_bytes(contents)
    assert [entry.get("streams") for _, entry in RingFile.open(path).entries()] == [None, ["b"]]


def test_a_ring_without_its_dictionary_is_refused(small, path):
    dictionary_file(path).unlink()
    with pytest.raises(RingError, match="cannot open the dictionary"):
        RingFile.open(path)


def test_many_changes_of_the_configuration_take_little_space(small, path):
    config = {f"k{number}": number for number in range(100)}
    for number in range(20_000):
        changes = {f"k{number % 100}": -number, "number": number}
        config |= changes
        small.write_documents({"config": changes}, {"config": config})
    opened = RingFile.open(path)
    assert opened.words[HeaderWord.DOCUMENT_CHANGES] == 20_000
    assert opened.documents()[0] == {"config": config}
    assert path.with_suffix(".documents").stat().st_size < 100_000
    small.write_documents(None, {"config": {"only": 1}, "summary": {"best": 2}})
    assert opened.documents()[0] == {"config": {"only": 1}, "summary": {"best": 2}}
    small.remove()
    assert list(path.parent.iterdir()) == []


def test_a_change_of_the_configuration_that_was_cut_off_is_ignored(small, path):
    small.write_documents({"config": {"a": 1}}, {"config": {"a": 1}})
    small.write_documents({"summary": {"b": 2}}, {"config": {"a": 1}, "summary": {"b": 2}})
    file = path.with_suffix(".documents")
    file.write_bytes(file.read_bytes()[:-3])
    assert small.documents()[0] == {"config": {"a": 1}}


def test_drops_are_summed_over_the_lanes(small):
    for start, _ in small.lanes:
        small.words[(start >> 3) + LaneWord.DROPS + Drop.UNSUPPORTED_VALUE] += 2
    assert small.drops() == {"unsupported_value": 6}


def test_truncated_files_are_refused(small, path, tmp_path):
    whole = path.read_bytes()
    for length in [*range(80), *range(80, len(whole), 1021), len(whole) - 1]:
        broken = tmp_path / "broken.ring"
        broken.write_bytes(whole[:length])
        with pytest.raises(RingError, match="ring file"):
            RingFile.open(broken)


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (HeaderWord.MAGIC, 0, "not a ring file"),
        (HeaderWord.MAGIC, 0x474E4952, "not a ring file"),
        (HeaderWord.VERSION, 1, "has ring version 1, but this tensormeter reads version 3"),
        (HeaderWord.VERSION, 0, "ring version 0"),
        (HeaderWord.FILE_BYTES, 4096, "not a ring file"),
        (HeaderWord.LANES, 0, "not a ring file"),
        (HeaderWord.LANES, 1 << 40, "not a ring file"),
        (64, 1 << 40, "is an incomplete ring file"),
    ],
)
def test_other_headers_are_refused(small, path, tmp_path, word, value, message):
    contents = bytearray(path.read_bytes())
    struct.pack_into("<q", contents, 8 * word, value)
    broken = tmp_path / "broken.ring"
    broken.write_bytes(contents)
    with pytest.raises(RingError, match=message):
        RingFile.open(broken)


def test_paths_that_are_no_files_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.ring"):
        with pytest.raises(RingError, match="cannot map"):
            RingFile.open(path)


def test_a_full_file_system_is_an_error_at_the_start(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(RingError, match=r"cannot reserve \d+ bytes"):
            RingFile.create(path, {}, buffer_bytes=2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(path.parent.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_a_ring_error(tmp_path):
    with pytest.raises(RingError, match="cannot lock"):
        RingFile.create(tmp_path / "missing" / "a.ring", {}, buffer_bytes=1 << 16)


def test_the_writer_counts_as_alive_until_it_releases(small, path):
    opened = RingFile.open(path)
    assert opened.writer_alive()
    small.release()
    assert not opened.writer_alive()
    small.release()
    small.remove()
    assert not opened.writer_alive()
    assert list(path.parent.iterdir()) == []


def test_the_writer_counts_as_alive_from_the_moment_its_file_can_be_found(path, monkeypatch):
    """An agent thread of the same process may look at any time, and would take away the ring of a dead writer."""
    seen = []
    rename = Path.rename

    def rename_and_look(self, target):
        rename(self, target)
        seen.append(RingFile.open(path).writer_alive())

    monkeypatch.setattr(Path, "rename", rename_and_look)
    ring = RingFile.create(path, {}, buffer_bytes=1 << 16)
    assert seen == [True]
    assert RingFile.open(path).writer_alive()
    ring.release()


def test_the_writer_counts_as_alive_however_its_file_is_spelled(small, path, tmp_path):
    (tmp_path / "elsewhere").symlink_to(path.parent)
    assert RingFile.open(tmp_path / "elsewhere" / path.name).writer_alive()
    small.release()
    assert not RingFile.open(tmp_path / "elsewhere" / path.name).writer_alive()


def _write_and_wait(path, pipe):
    """Create a ring, leave a child behind that outlives us, and wait to be killed."""
    RingFile.create(path, {}, buffer_bytes=1 << 16)
    grandchild = os.fork()
    if grandchild:
        os.write(pipe, b"%d\n" % grandchild)
    signal.pause()
    os._exit(0)


def test_a_killed_writer_is_seen_even_while_its_children_live(path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _write_and_wait(path, writing)
    os.close(writing)
    with os.fdopen(reading) as answer:
        grandchild = int(answer.readline())
    try:
        ring = RingFile.open(path)
        assert ring.writer_alive()
        with pytest.raises(RingError, match="cannot lock"):
            RingFile.create(path, {}, buffer_bytes=1 << 16)
        assert ring.writer_alive()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.kill(grandchild, 0)  # lives
        assert not ring.writer_alive()
        assert ring.state is State.OPEN
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_forked_child_does_not_own_its_parents_ring(small, path):
    alive = call_in_child(lambda: RingFile.open(path).writer_alive())
    assert alive == "True"  # the parent, seen from outside: it holds the lock
    assert RingFile.open(path).writer_alive()


def test_a_thread_can_read_until_the_process_ends(path):
    """An agent on a thread drains rings while the interpreter exits, after the finalizers of objects have run."""
    script = """
import atexit, pathlib, sys
rings = []
@atexit.register  # before anything registers a finalizer, so this runs last
def read_last():
    written, opened = rings
    print([kind.name for kind, _ in opened.entries()], opened.documents())
from tensormeter.ring.file import RingFile
path = pathlib.Path(sys.argv[1])
rings.append(RingFile.create(path, {"resource": {"a": 1}}, buffer_bytes=1 << 16, lanes=1))
rings.append(RingFile.open(path))
"""
    ended = run_python("-c", script, path)
    assert (ended.stdout, ended.stderr) == ("['METADATA'] None\n", "")
