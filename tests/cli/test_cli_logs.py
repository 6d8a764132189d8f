"""`tensormeter logs`, and the traceback of a failed run in `tensormeter show`."""

import signal

import pytest

from support.otlp import Parts
from tensormeter.errors import UsageError
from tensormeter.otlp.batch import Event
from tensormeter.otlp.encode import encode_events

T0 = 1_750_000_000_000_000_000
S = 10**9
TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 7, in step\n    loss.backward()\nRuntimeError: \x1b[1mCUDA out of memory'


def line(text, second, stream="stdout", severity=9):
    return Event("", T0 + second * S, text, {"log.iostream": stream} if stream else {}, severity_number=severity)


@pytest.fixture
def send(post):
    """Sends events of a run's rank."""

    def send(run, *events, rank=0, attempt=1):
        resource = Parts.resource(run, f"{run}-{attempt}-{rank}") | {
            "tensormeter.rank": rank,
            "tensormeter.run.attempt": attempt,
        }
        post("/v1/logs", encode_events(resource, events))

    return send


def test_lines_are_printed_selected_and_safe(run_cli, send):
    send(
        "printing",
        Event("tensormeter.run.start", T0),
        line("epoch 1", 1),
        line(" 10%|#\r100%|###", 2, "stderr"),
        line("\x1b[31mloss\x1b[0m\t0.5\x1b]0;title\x07\x9b2J\u202e", 3, None, 13),
        line("two\nlines", 4),
    )

    def printed(*options):
        done = run_cli("logs", "printing", *options)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    everything = ["epoch 1", "100%|###", "loss\t0.5\ufffd2J\ufffd", "two", "lines"]
    assert printed() == everything
    assert printed("--severity", "warning") == everything[2:3]
    assert printed("--stream", "stderr") == everything[1:2]
    assert printed("--grep", "^epoch \\d") == everything[:1]
    assert printed("--grep", "Epoch") == []
    assert printed("--grep", "o", "--lines", "2") == ["loss\t0.5\ufffd2J\ufffd", "two", "lines"]
    assert printed("--lines", "1", "--timestamps") == ["2025-06-15 15:06:44.000 two", "2025-06-15 15:06:44.000 lines"]
    send("printing", line("other", 9), rank=3)
    assert printed("--rank", "3") == ["other"]
    assert printed("--lines", "1") == ["[3] other"]
    done = run_cli("logs", "printing", "--grep", "(")
    assert (done.returncode, "pattern: expected a regular expression" in done.stderr) == (1, True)
    assert run_cli("logs", "nothing").returncode == 1
    done = run_cli("logs", "printing", "--rank", "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "rank 2: the run has no such rank; it has 0, 3" in done.stderr


def test_no_pattern_takes_exponential_time(run_cli, send):
    pytest.importorskip("re2")
    send("slow", Event("tensormeter.run.start", T0), line("a" * 60 + "!", 1), line("a" * 60, 2))
    assert run_cli("logs", "slow", "--grep", "^(a+)+$").stdout == "a" * 60 + "\n"
    assert run_cli("logs", "slow", "--grep", "(?<=aa)!$").stdout == "a" * 60 + "!\n"  # not in RE2


def test_following_goes_on_over_attempts_and_ends_with_the_run(spawn_cli, send):
    send("followed", Event("tensormeter.run.start", T0), *(line(f"old {number}", number) for number in range(150)))
    process = spawn_cli("logs", "followed", "--follow")
    assert [process.stdout.readline() for _ in range(100)] == [f"old {number}\n" for number in range(50, 150)]
    send("followed", line("late", 1), line("new", 200))
    assert [process.stdout.readline(), process.stdout.readline()] == ["late\n", "new\n"]
    send("followed", Event("tensormeter.run.end", T0 + 300 * S, {"state": "preempted"}))
    send("followed", Event("tensormeter.run.start", T0 + 400 * S), line("again", 401), attempt=2)
    assert process.stdout.readline() == "again\n"
    send("followed", line("last", 500), Event("tensormeter.run.end", T0 + 501 * S, {"state": "finished"}), attempt=2)
    assert process.communicate(timeout=300) == ("last\n", "")
    assert process.returncode == 0


def test_interrupts_and_closed_pipes_end_it_quietly(spawn_cli, send):
    send("interrupted", Event("tensormeter.run.start", T0), *(line("x" * 1000, number) for number in range(2000)))
    process = spawn_cli("logs", "interrupted", "--follow", "--lines", "1")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=300) == ("", "")
    assert process.returncode == 130
    process = spawn_cli("logs", "interrupted")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) == 0
    assert process.stderr.read() == ""


def test_the_client_reads_lines(client, send):
    send(
        "read",
        Event("tensormeter.run.start", T0),
        *(line(f"line {number}", number, severity=number % 20) for number in range(40)),
    )
    run = client.run("read")
    lines = run.logs()
    assert [found.text for found in lines] == [f"line {number}" for number in range(40)]
    first = next(iter(lines))
    assert (first.time, first.rank, first.stream, first.scope["name"]) == (T0, 0, "stdout", "tensormeter")
    assert [found.text for found in run.logs("LINE 3", tail=2)] == ["line 38", "line 39"]
    assert [found.text for found in run.logs(pattern=r"e [45]$")] == ["line 4", "line 5"]
    assert {found.severity for found in run.logs(severity="error")} == {17, 18, 19}
    assert [found.text for found in run.logs(start=T0 + 3 * S, stop=T0 + 5 * S, stream="stdout")] == [
        "line 3",
        "line 4",
    ]
    assert list(run.logs(rank=5)) == []
    with pytest.raises(UsageError, match="severity: expected TRACE"):
        run.logs(severity="loud")
    frame = run.logs(tail=3).to_pandas()
    assert list(frame.text) == ["line 37", "line 38", "line 39"]
    assert (str(frame.time.dtype), list(frame["rank"])) == ("datetime64[ns, UTC]", [0, 0, 0])


def test_the_traceback_of_a_failed_run_is_shown(run_cli, send):
    end = Event(
        "tensormeter.run.end", T0 + 2 * S, {"state": "failed", "message": "RuntimeError", "traceback": TRACEBACK}
    )
    later = Event(
        "tensormeter.run.end", T0 + 3 * S, {"state": "failed", "message": "x", "traceback": "Error: peer is gone"}
    )
    send("raising", Event("tensormeter.run.start", T0), end)
    send("raising", Event("tensormeter.run.start", T0), later, rank=1)
    done = run_cli("show", "raising")
    assert (done.returncode, done.stderr) == (0, "")
    assert "    loss.backward()\nRuntimeError: CUDA out of memory\n" in done.stdout
    assert "peer is gone" not in done.stdout
