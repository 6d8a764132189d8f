"""Signal handlers that log or raise, and threads: at every instant, nothing is lost and nothing is torn."""

import contextlib
import itertools
import signal
import sys
import threading

import pytest

import tensormeter.record.rows.lane as lane_module
from tensormeter.record.recorder import Recorder
from tensormeter.ring.file import RingFile

pytestmark = pytest.mark.usefixtures("writers")


@pytest.fixture
def alarm():
    """Installs a handler, and sends the main thread a signal every so many seconds, but one at a time: handlers that
    come faster than they end would go deeper and deeper.
    """

    @contextlib.contextmanager
    def ringing(handler, interval):
        over = threading.Event()
        switch = sys.getswitchinterval()
        busy = False

        def handle(*arguments):
            nonlocal busy
            try:
                handler(*arguments)
            finally:
                busy = False

        def ring():
            nonlocal busy
            while not over.wait(interval):
                if not busy:
                    busy = True
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

        previous = signal.signal(signal.SIGUSR2, handle)

        bell = threading.Thread(target=ring)
        sys.setswitchinterval(1e-5)
        bell.start()
        try:
            yield
        finally:
            over.set()
            bell.join(300)
            sys.setswitchinterval(switch)
            signal.signal(signal.SIGUSR2, previous)

    return ringing


@pytest.fixture
def short_strides(monkeypatch):
    """Make a writer ask for room all the time, so that interruptions fall into that, too."""
    monkeypatch.setattr(lane_module, "_STRIDE", 64)


@pytest.mark.parametrize("keys", [1, 5])
def test_a_handler_that_logs_loses_nothing(new_recording, alarm, short_strides, keys):
    recording = new_recording(lanes=1, buffer_bytes=4 << 20)
    handled = itertools.count()

    def handler(*_):
        number = next(handled)
        recording.log({f"handler{number % 3}": float(number)}, number)

    with alarm(handler, 0.0002):
        for number in range(15_000):
            recording.log({f"main{number % keys}": float(number)}, number)
    rows = recording.rows()
    assert recording.ring.drops() == {}
    steps = {who: [row.step for row in rows if who in str(row.values)] for who in ("main", "handler")}
    assert steps["main"] == list(range(15_000))
    assert steps["handler"] == list(range(next(handled)))
    assert all(row.values.popitem()[1] == row.step for row in rows)
    assert len({row.time for row in rows}) == len(rows)


def test_a_handler_may_log_new_names_while_new_names_are_being_added(new_recording, alarm):
    recording = new_recording(lanes=1, buffer_bytes=1 << 20)
    handled = itertools.count()

    def handler(*_):
        number = next(handled)
        recording.log({f"handler{number}": float(number)}, number)

    with alarm(handler, 0.0005):
        for number in range(1500):
            recording.log({f"main{number}": float(number)}, number)
    rows = recording.rows()
    assert recording.ring.drops() == {}
    assert sorted(row.step for row in rows if "main" in str(row.values)) == list(range(1500))
    assert sorted(row.step for row in rows if "handler" in str(row.values)) == list(range(next(handled)))
    assert all(next(iter(row.values)) in (f"main{row.step}", f"handler{row.step}") for row in rows)


def test_a_handler_may_log_while_a_layout_is_added(recording):
    """The worst instant: the outer call holds the locks, and has looked at the dictionary but not written to it."""
    add_layout = recording.ring.add_layout

    def interrupted(layout, numbers):
        if layout.names == ("outer",):
            recording.log({"inner": 1.0}, 7)
        return add_layout(layout, numbers)

    recording.ring.add_layout = interrupted
    recording.log({"outer": 2.0}, 8)
    assert [(row.step, row.values) for row in recording.rows()] == [(7, {"inner": 1.0}), (8, {"outer": 2.0})]


# What is raised inside of a callback of the garbage collector goes nowhere but into a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_handler_that_raises_leaves_the_ring_whole(new_recording, alarm, short_strides):
    recording = new_recording(lanes=1, buffer_bytes=1 << 16)
    armed = False

    def handler(_, frame):
        if armed and not _warns(frame):
            raise KeyboardInterrupt

    numbers = itertools.count()
    interruptions = 0
    for _ in range(40):
        returned, tried = [], []
        with alarm(handler, 0.0003):
            while len(tried) < 400:
                number = next(numbers)
                tried.append(number)
                try:
                    armed = True
                    recording.log({f"k{number % 3}": float(number)}, number)
                    returned.append(number)
                    armed = False
                except KeyboardInterrupt:
                    armed = False
                    interruptions += 1
        steps = [row.step for row in recording.rows()]
        assert steps == sorted(set(steps))
        assert set(returned) <= set(steps) <= set(tried)
    assert recording.ring.drops() == {}
    assert interruptions > 0
    recording.log({"last": 1.0}, 1)
    assert recording.values() == [{"last": 1.0}]


def test_more_threads_than_lanes_lose_nothing(new_recording):
    recording = new_recording(lanes=4, buffer_bytes=4 << 20)
    start = threading.Barrier(11)

    def work(who):
        recording.log({f"thread{who}": 0.0, "n": 0}, 0)  # takes a lane, before any thread gives one back
        start.wait(300)
        for number in range(1, 400):
            recording.log({f"thread{who}": float(number), "n": number}, number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(who,)) for who in range(10)]
        for thread in threads:
            thread.start()
        start.wait(300)
        for number in range(400):
            recording.log({"main": float(number)}, number)
        for thread in threads:
            thread.join(300)
    finally:
        sys.setswitchinterval(interval)
    rows = recording.rows()
    assert recording.ring.drops() == {}
    for who in [*(f"thread{i}" for i in range(10)), "main"]:
        assert [row.step for row in rows if who in row.values] == list(range(400))
    assert len({row.time for row in rows}) == len(rows) == 11 * 400
    assert {row.lane for row in rows} == {0, 1, 2, 3}
    assert {row.lane for row in rows if "main" in row.values} == {0}


def test_short_lived_threads_lend_each_other_lanes(new_recording):
    recording = new_recording(lanes=3, buffer_bytes=1 << 20)
    recording.log({"main": 0.0}, 0)
    for who in range(40):
        thread = threading.Thread(target=recording.log, args=({"thread": float(who)}, who))
        thread.start()
        thread.join(300)
    rows = recording.rows()
    assert [row.step for row in rows if "thread" in row.values] == list(range(40))
    assert {row.lane for row in rows if "thread" in row.values} == {1}
    assert len({row.time for row in rows}) == len(rows)


def test_a_writer_kept_from_another_thread_does_not_write_to_that_threads_lane(new_recording):
    recording = new_recording(lanes=3)
    recording.log({"a": 1.0}, 1)
    kept = recording.log  # generated for the main thread
    assert kept != recording.recorder.log
    thread = threading.Thread(target=kept, args=({"a": 2.0}, 2))
    thread.start()
    thread.join(300)
    assert {row.step: row.lane for row in recording.rows()} == {1: 0, 2: 1}


def test_a_ring_with_one_lane_serves_all_threads(new_recording):
    recording = new_recording(lanes=1)
    recording.log({"a": 0.0}, 0)
    threads = [threading.Thread(target=recording.log, args=({"a": float(i)}, i)) for i in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(row.step for row in recording.rows()) == list(range(6))


def test_a_run_may_be_finished_while_threads_log(new_recording):
    """Rows accepted before the end are there. Later ones are refused without harm."""
    from tensormeter.ring.format import State

    recording = new_recording(lanes=4, buffer_bytes=4 << 20)
    started, over = threading.Barrier(4), threading.Event()

    def work(who):
        started.wait(300)
        for number in itertools.count():
            recording.log({f"thread{who}": float(number)}, number)
            if over.is_set():
                break

    threads = [threading.Thread(target=work, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    started.wait(300)
    recording.log({"main": 1.0}, 1)
    recording.recorder.close(State.FINISHED)
    over.set()
    for thread in threads:
        thread.join(300)
    rows = recording.rows()
    for who in range(3):
        steps = [row.step for row in rows if f"thread{who}" in row.values]
        assert steps == list(range(len(steps)))
    assert {"main": 1.0} in [row.values for row in rows]
    assert [reader.cursor.position for reader in recording.reader.lanes] == recording.ring.head_positions()
    assert "ring_full" not in recording.ring.drops()


@pytest.mark.parametrize(
    ("apart", "least", "most"),
    [
        (0, 400_000 // 4096, 400_000 // 4096 + 10),  # many rows: every 4 KiB, once it is known that they are many
        (0.01, 1_000, 5_000),  # within 100 ms or so
        (0.0625, 10_000, 10_000),  # each row
        (10.0, 10_000, 10_000),
    ],
)
@pytest.mark.parametrize("native", [True, False])
def test_on_stride_is_called_now_and_then_at_every_rate(tmp_path, monkeypatch, apart, least, most, native):
    """The check that replaces a killed agent is called here, also by a run that logs once in ten seconds."""
    if not native:
        monkeypatch.setattr(lane_module, "native_writers", lambda: False)
    clock = 1000.0
    monkeypatch.setattr(lane_module, "monotonic", lambda: clock)
    calls = []
    ring = RingFile.create(tmp_path / "a.ring", {}, buffer_bytes=1 << 20, lanes=1)
    log = []
    recorder = Recorder(ring, on_writer=log.append, on_stride=lambda: calls.append(clock))
    recorder.log({"a": 0.0})
    for number in range(1, 10_000):
        clock += apart
        log[-1]({"a": float(number)})
    ring.release()
    assert least <= len(calls) <= most
    if apart:
        assert max(later - sooner for sooner, later in itertools.pairwise(calls)) < max(0.2, apart + 0.001)


def test_on_stride_is_called_for_every_row_that_finds_no_room(tmp_path):
    """For the lane may be full because the agent is dead, and then this is what starts another."""
    calls = []
    ring = RingFile.create(tmp_path / "a.ring", {}, buffer_bytes=1 << 16, lanes=1)
    recorder = Recorder(ring, on_writer=lambda writer: None, on_stride=lambda: calls.append(1))
    while not ring.drops():
        recorder.log({"a": 1.0})
    calls.clear()
    for _ in range(5):
        recorder.log({"a": 1.0})
    ring.release()
    assert len(calls) == 5


def _warns(frame):
    """Whether the interpreter was about to tell pytest of such an exception."""
    while frame is not None:
        if "unraisable" in frame.f_code.co_name:
            return True
        frame = frame.f_back
    return False
