"""The spool: all or nothing, a place for each destination, and nothing lost when its process is killed."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from support.spool_version_2 import VERSION_2
from support.spools import take_requests
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.request import Encoded, checksum
from tensormeter.agent.spool.spool import Spool
from tensormeter.errors import SpoolError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool.sqlite"


@pytest.fixture
def spool(path):
    spool = Spool(path)
    yield spool
    spool.close()


def put(spool, *bodies, destinations=("a",), process="p", cursors=None, started=True, ended=False):
    requests = [Encoded("metrics", body, len(body)) for body in bodies]
    spool.put(requests, destinations, process, cursors or {}, started=started, ended=ended)


def drain(spool, destination="a"):
    return [request.body for request in take_requests(spool, destination)]


def test_requests_come_in_order_until_they_are_done(spool):
    assert spool.next("a") is None
    put(spool, b"1", b"2")
    put(spool, b"3")
    assert spool.next("a") == spool.next("a")
    assert spool.pending() == 3
    assert drain(spool) == [b"1", b"2", b"3"]
    assert spool.pending() == 0


def test_each_destination_has_its_own_place(spool):
    put(spool, b"1", b"22", destinations=("a", "b"))
    assert (spool.pending(), spool.pending_items()) == (4, 6)
    assert drain(spool, "a") == [b"1", b"22"]
    assert spool.next("a") is None
    assert (spool.pending(), spool.pending_items()) == (2, 3)
    assert drain(spool, "b") == [b"1", b"22"]
    assert spool.next("c") is None


def test_a_request_is_gone_when_every_destination_has_dealt_with_it(spool, path):
    put(spool, b"1", destinations=("a", "b"))
    sequence, _ = spool.next("a")
    spool.done("a", sequence)
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM request").fetchone() == (1,)
    spool.quarantine("b", sequence, "no good")
    assert database.execute("SELECT count(*) FROM request").fetchone() == (0,)
    assert database.execute("SELECT destination, reason, signal, items, body FROM quarantine").fetchall() == [
        ("b", "no good", "metrics", 1, b"1")
    ]
    database.close()
    assert (spool.pending(), spool.quarantined_items()) == (0, 1)


def test_ids_are_stable_and_never_used_again(path):
    first = Spool(path)
    put(first, b"1", b"2")
    ids = [first.next("a")[1].id]
    first.close()
    second = Spool(path)
    assert second.next("a")[1].id == ids[0]
    drain(second)
    put(second, b"3")
    assert second.next("a")[1].id not in ids
    second.close()


def test_ids_of_two_spools_differ(tmp_path):
    ids = set()
    for name in ("a", "b"):
        spool = Spool(tmp_path / name)
        put(spool, b"1")
        ids.add(spool.next("a")[1].id)
        spool.close()
    assert len(ids) == 2


def test_cursors_and_lives_are_kept(spool, path):
    assert spool.cursor("p", 0) == Cursor(0, 0)
    assert spool.lifecycle("p") == (False, False)
    put(spool, cursors={0: Cursor(8, 100), 3: Cursor(1 << 50, (1 << 62) + 1)}, started=True)
    put(spool, cursors={0: Cursor(16, 200)}, process="q", started=True, ended=True)
    again = Spool(path)
    assert again.cursor("p", 0) == Cursor(8, 100)
    assert again.cursor("p", 3) == Cursor(1 << 50, (1 << 62) + 1)
    assert again.cursor("q", 0) == Cursor(16, 200)
    assert again.cursor("q", 3) == Cursor()
    assert (again.lifecycle("p"), again.lifecycle("q")) == ((True, False), (True, True))
    again.close()


def test_a_put_that_fails_stores_nothing(spool):
    put(spool, b"1", cursors={0: Cursor(8, 1)})
    with pytest.raises(SpoolError, match="cannot write to the spool"):
        put(spool, b"2", destinations=("a", "a"), cursors={0: Cursor(16, 2)}, ended=True)
    assert spool.cursor("p", 0) == Cursor(8, 1)
    assert spool.lifecycle("p") == (True, False)
    assert drain(spool) == [b"1"]


def test_other_versions_and_other_files_are_refused(spool, path, tmp_path):
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 4")
    database.execute(f"PRAGMA application_id = {0x746D7300 | 4}")  # with one of them only it is damaged
    database.close()
    with pytest.raises(SpoolError, match="has spool version 4, but this tensormeter reads version 3"):
        Spool(path)
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to be taken for one" * 20)
    for wrong in (text, tmp_path, tmp_path / "missing" / "spool"):
        with pytest.raises(SpoolError, match="cannot open the spool"):
            Spool(wrong)


def test_two_connections_share_the_work(spool, path):
    other = Spool(path)
    put(spool, b"1", b"2", destinations=("a", "b"))
    assert drain(other, "b") == [b"1", b"2"]
    assert spool.pending() == 2
    assert drain(spool, "a") == [b"1", b"2"]
    assert other.pending() == 0
    other.close()


PUTTING = """
import sys
from pathlib import Path
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.request import Encoded, checksum
from tensormeter.agent.spool.spool import Spool
spool = Spool(Path(sys.argv[1]))
number = spool.cursor("p", 0).position
while True:
    bodies = [b"%d" % n for n in range(number, number + 3)]
    number += 3
    spool.put([Encoded("metrics", b, 1) for b in bodies], ["a", "b"], "p", {0: Cursor(number, number)}, started=True,
              ended=False)
    oldest = spool.next("a")
    if number % 2 and oldest:
        spool.done("a", oldest[0])
        print(oldest[1].body.decode(), flush=True)
    else:
        print("-", flush=True)
"""


def test_a_process_killed_in_the_middle_of_puts_leaves_no_gap_and_no_duplicate(path):
    done = []
    for kill in range(20):
        process = subprocess.Popen([sys.executable, "-c", PUTTING, str(path)], stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline() for _ in range(1 + kill * 3)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        assert process.wait(300) == -signal.SIGKILL
        done += [int(line) for line in lines if line.strip().isdigit()]
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()
    spool = Spool(path)
    total = spool.cursor("p", 0).position
    assert total > 20 * 3
    assert [int(body) for body in drain(spool, "b")] == list(range(total))
    rest = [int(body) for body in drain(spool, "a")]
    assert rest == list(range(rest[0], total))
    # What was retired before a kill may not have been printed any more: at most one for each kill.
    assert done == sorted(set(done))
    assert set(range(rest[0])) >= set(done)
    assert rest[0] - len(done) <= 20
    assert spool.pending() == 0
    spool.close()


def test_a_request_of_an_unknown_signal_is_damaged(spool):
    """The signal is part of addresses and file names, and a spool may have come from elsewhere."""
    spool.put([Encoded("/../../elsewhere", b"1", 1)], ["a"], "p", {}, started=True, ended=False)
    assert spool.next("a") is None
    assert spool.losses() == {"damaged": 1}


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="the system does not say who holds a lock")
def test_a_spool_that_is_in_use_names_the_process(spool, path):
    code = "import sqlite3, sys; database = sqlite3.connect(sys.argv[1], isolation_level=None);"
    code += "database.execute('BEGIN IMMEDIATE'); print('held', flush=True); input()"
    spool._database.execute("PRAGMA busy_timeout = 0")
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(SpoolError, match=f"which is in use by process {process.pid}: database is locked"):
            put(spool, b"1")
        process.communicate("\n")


def test_a_spool_of_version_2_is_brought_up_to_date(path):
    """Nothing in it is lost, and it is whole afterwards."""
    database = sqlite3.connect(path)
    database.executescript(VERSION_2)
    body = b"body"
    expected = checksum("id", "metrics", 4, body)
    database.execute("INSERT INTO request VALUES (7, 'id', 'metrics', 4, 2, 0, ?, ?)", (expected, body))
    database.execute("INSERT INTO pending VALUES ('a', 7)")
    database.execute("INSERT INTO quarantine VALUES (1, 'a', 'other', 'no', 'logs', 1, x'00')")
    database.execute("INSERT INTO cursor VALUES ('p', 0, 64, 5)")
    database.execute("INSERT INTO aggregate VALUES ('p', 'm', '{}')")
    database.execute("INSERT INTO process VALUES ('p', 1, 0)")
    database.execute("INSERT INTO loss VALUES ('refused', 3)")
    database.execute("PRAGMA user_version = 2")
    database.execute(f"PRAGMA application_id = {0x746D7302}")
    database.commit()
    database.close()
    spool = Spool(path)
    spool.check()
    assert (spool.cursor("p", 0), spool.lifecycle("p"), spool.losses()) == (
        Cursor(64, 5),
        (True, False),
        {"refused": 3},
    )
    assert (spool.aggregates("p"), spool.pending_items(), spool.quarantined_items()) == ({"m": "{}"}, 4, 1)
    assert spool.retry()[:2] == (1, 1)
    assert drain(spool) == [body, b"\0"]
    spool.check()
    spool.close()
