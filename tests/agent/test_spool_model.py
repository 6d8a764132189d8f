"""The spool against a model, with its files torn as a crash of the machine may tear them.

The limits of the simulation: SQLite has no file system of ours below it. Instead, its files are copied at instants
between its calls, as they are in the kernel's cache, and a crash goes back to what such a copy and a later one have in common:
the write-ahead log is a beginning of the later one, cut at any byte, with what stands behind the cut zeroed or old or gone.
That covers torn and missing appends to the log, which is where everything is written. It does not cover a database file that
is torn in the middle of a checkpoint: SQLite syncs the log before and the file after it, and we rely on that.
"""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.recovery import open_repaired
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool

DESTINATIONS = ("a", "b")


class SpoolMachine(RuleBasedStateMachine):
    """The model is a list of states, one for each transaction: what waits for each destination, and the cursor."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.spool = Spool(self.folder / "spool.sqlite")
        self.number = 0
        self.history = [({"a": [], "b": []}, 0)]
        self.synced = 0  # the first state that a crash can no longer take away

    @property
    def waiting(self):
        return self.history[-1][0]

    def _did(self, waiting, cursor):
        self.history.append((waiting, cursor))

    @rule(sizes=st.lists(st.integers(0, 5000), max_size=3))
    def put(self, sizes):
        bodies = [b"%d " % (self.number + k) + b"x" * size for k, size in enumerate(sizes)]
        self.number += len(sizes) + 1
        requests = [Encoded("metrics", body, 1) for body in bodies]
        self.spool.put(requests, DESTINATIONS, "p", {0: Cursor(self.number, 1)}, started=True, ended=False)
        self._did({name: [*self.waiting[name], *bodies] for name in DESTINATIONS}, self.number)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(destination=st.sampled_from(DESTINATIONS), rejected=st.booleans())
    def retire(self, destination, rejected):
        entry = self.spool.next(destination)
        assert (entry is None) == (not self.waiting[destination])
        if entry is None:
            return
        sequence, request = entry
        assert request.body == self.waiting[destination][0]
        if rejected:
            self.spool.quarantine(destination, sequence, "no")
        else:
            self.spool.done(destination, sequence)
        self._did(self.waiting | {destination: self.waiting[destination][1:]}, self.history[-1][1])

    @rule()
    def checkpoint(self):
        self.spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.synced = len(self.history) - 1

    @rule()
    def killed(self):
        """Nothing is closed; the next process finds what was written."""
        counted = self.spool.losses()
        self._reopen(self._files())
        assert self._state() == self.history[-1]
        assert self.spool.losses() == counted

    @rule(cut=st.floats(0, 1), rest=st.sampled_from(["gone", "zeros", "noise"]))
    def power_fails(self, cut, rest):
        """The log ends, or is something else from here on."""
        files = self._files()
        log = files.get("spool.sqlite-wal", b"")
        at = int(cut * len(log))
        tail = {
            "gone": b"",
            "zeros": bytes(len(log) - at),
            "noise": bytes((7 * k + 3) % 256 for k in range(len(log) - at)),
        }
        files["spool.sqlite-wal"] = log[:at] + tail[rest]
        self._reopen(files)
        state = self._state()
        possible = self.history[self.synced :]
        assert state in possible, "a state that there was, whole, and none before the last sync"
        index = len(self.history) - 1 - self.history[::-1].index(state)
        self.history = self.history[: index + 1]
        self.synced = min(self.synced, index)
        # What was lost comes again from the ring, from the cursor on, and under other numbers here.

    @invariant()
    def nothing_is_lost(self):
        assert self.spool.losses().keys() <= {"damaged"}, "the losses of a torn log, as far as they are visible"
        assert self.spool.pending() == sum(map(len, self.waiting.values()))

    def teardown(self):
        self.spool.close()
        shutil.rmtree(self.folder)

    def _files(self):
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if not path.name.endswith("-shm")}

    def _reopen(self, files):
        old = self.folder
        self.folder = Path(tempfile.mkdtemp(prefix="spool-model-"))
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        self.spool.close()
        shutil.rmtree(old)
        self.spool = open_repaired(self.folder / "spool.sqlite", DESTINATIONS)

    def _state(self):
        rows = self.spool._rows(
            "SELECT destination, body FROM pending JOIN request USING (sequence) ORDER BY destination, sequence"
        )
        waiting = {name: [body for destination, body in rows if destination == name] for name in DESTINATIONS}
        return waiting, self.spool.cursor("p", 0).position


SpoolMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_the_spool_is_what_the_model_says = SpoolMachine.TestCase
