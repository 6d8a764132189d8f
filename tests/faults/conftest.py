"""Places in which things go wrong: a receiver that fails on demand, a proxy that cuts connections, trainers, and an oracle.

The oracle is arithmetic: the row of a step is known from the step, and how many calls of `log` had returned is counted in
shared memory. The expected rows follow from that, and are compared with those that the receiver has accepted.
"""

import os
import random
import socket
import struct
import sys
import threading
from collections import Counter

import pytest

from support.agents import join_agents, kill_agents
from support.servers import RestartableServer
from support.trainers import TrainingProcess, named_settings, training_environment
from tensormeter.agent.spool.request import Encoded

PRELUDE = """
import os, select, sys, signal, threading, time, mmap
import tensormeter
with open(os.environ["RETURNED"], "r+b") as file:
    _returned = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
def count(rows):
    _returned[0] = rows  # one store: `struct.pack_into` writes zeros first, and a kill may come between
def log(run, steps):
    for step in steps:
        run.log({"loss": step / 7, "n": step}, step)
        count(step + 1)
def ready():
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        pass  # Python would handle a signal that comes right before a call that blocks only after it
    return sys.stdin.readline().strip()
"""


class Trainer(TrainingProcess):
    """A training process. Its script has `log(run, steps)`, and `ready()`, which waits here for `go`."""

    def __init__(self, script, environment, counter):
        counter.write_bytes(bytes(8))
        self._counter = counter
        super().__init__(["-c", PRELUDE + script], environment | {"RETURNED": str(counter)})

    @property
    def returned(self):
        """Calls of `log` that have returned."""
        return int.from_bytes(self._counter.read_bytes(), sys.byteorder)

    def ready(self):
        self.expect("ready")

    def go(self, word=""):
        self.write(word)


class Oracle:
    """Knows every row that was logged, and whether what has arrived is that."""

    @staticmethod
    def rows(steps):
        return Counter((step, (("loss", step / 7), ("n", float(step)))) for step in steps)

    def agrees(self, receiver, steps):
        """Every row once, unchanged, and none that was not logged."""
        assert receiver.rows() == self.rows(steps)

    def agrees_after_kill(self, receiver, returned):
        """All rows whose calls had returned, and at most the one that was interrupted."""
        rows = receiver.rows()
        assert returned <= len(rows) <= returned + 1
        assert rows == self.rows(range(len(rows)))


class Proxy:
    """A TCP proxy. `cut(k)` says, for the k-th connection, what becomes of it: (bytes to pass on, bytes to pass back, or None
    for all; whether to end with a reset). `heal()` passes everything.
    """

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = lambda number: (None, None, False)
        self.connections = 0
        self.on_answer = None
        threading.Thread(target=self._serve, daemon=True).start()

    def heal(self):
        self.cut = lambda number: (None, None, False)

    def close(self):
        self._listener.close()

    def _serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            plan = self.cut(self.connections)
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            up, down, reset = plan
            for source, sink, limit, answer in ((client, server, up, False), (server, client, down, True)):
                args = (source, sink, limit, reset, answer)
                threading.Thread(target=self._pump, args=args, daemon=True).start()

    def _pump(self, source, sink, limit, reset, answer):
        passed = 0
        try:
            while data := source.recv(65536):
                if answer and self.on_answer is not None and self.on_answer(data):
                    break
                if limit is not None and passed + len(data) >= limit:
                    sink.sendall(data[: limit - passed])
                    break
                passed += len(data)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()


@pytest.fixture
def kills():
    """The number of kills of a test: 10, or the number of `make chaos`."""
    return int(os.environ.get("CHAOS_KILLS", "10"))


@pytest.fixture
def instants():
    """Random numbers: others each time in `make chaos`, whose seed is shown when the test fails."""
    seed = random.SystemRandom().randrange(1 << 32) if "CHAOS_KILLS" in os.environ else 1
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def prelude():
    """The beginning of every training script."""
    return PRELUDE


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def environment(tmp_path, state, receiver):
    return training_environment(tmp_path, receiver.url, "faulty") | {"TENSORMETER_DIR": str(state)}


@pytest.fixture
def train(environment, state, tmp_path):
    """Starts training scripts, and kills those that are left at the end, with their agents."""
    trainers = []

    def train(script, **settings):
        counter = tmp_path / f"returned-{len(trainers)}"
        trainers.append(Trainer(script, environment | named_settings(settings), counter))
        return trainers[-1]

    yield train
    for trainer in trainers:
        trainer.kill()
    kill_agents(state)


@pytest.fixture
def gone(state, wait_for):
    """Waits until everything is delivered, and nothing is left."""
    return lambda: wait_for(lambda: not [*(state / "runs").glob("[!.]*@*")], "the run directory is gone")


@pytest.fixture
def oracle():
    return Oracle()


@pytest.fixture
def put(spool):
    """Puts requests with these bodies into the spool."""

    def put(*bodies):
        spool.put([Encoded("metrics", body, 1) for body in bodies], ["experiment"], "p", {}, started=True, ended=False)

    return put


@pytest.fixture
def new_proxy():
    proxies = []

    def create(url):
        proxies.append(Proxy(int(url.rpartition(":")[2])))
        return proxies[-1]

    yield create
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def server(tmp_path, environment):
    """A real experiment server, not started yet."""
    server = RestartableServer(tmp_path, environment)
    yield server
    join_agents()  # they ask the server whether the data is durable
    server.stop()
