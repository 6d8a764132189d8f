"""Fixtures and rules of all tests."""

import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from support.agents import join_agents
from support.fuse_disk import Unavailable
from support.odd_disk import OddDisk
from support.processes import module_command
from support.receiver import Behaviour, Receiver, answer
from support.waiting import eventually, wait_for
from tensormeter.agent.delivery.delivery import Delivery
from tensormeter.agent.spool.spool import Spool
from tensormeter.settings import Settings

# Nothing here depends on how fast a machine is. The examples are the same each time, but in `make chaos`.
settings.register_profile("tensormeter", deadline=None, derandomize="CHAOS_KILLS" not in os.environ)
settings.load_profile("tensormeter")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell sets this for background processes, and children would inherit it; some tests send them Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip modules that import PyTorch where it is not installed."""
    report = yield
    if report.failed and "No module named 'torch'" in str(report.longrepr) and find_spec("torch") is None:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 1, "Skipped: torch is not installed")
    return report


@pytest.fixture(scope="session", autouse=True)
def _no_statistics() -> Iterator[None]:
    """Only a few tests want points and log records that the test itself did not make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORMETER_SAMPLE_INTERVAL", "0")
        patch.setenv("TENSORMETER_SELF_METRICS_INTERVAL", "0")
        patch.setenv("TENSORMETER_CONSOLE", "off")
        patch.setenv("TENSORMETER_QUIET", "1")
        patch.setenv("TENSORMETER_RECORD_CODE", "0")
        yield


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_slow() -> Iterator[None]:
    """On a busy machine any log call can be slow, and would be warned about; `test_cost` replaces the clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensormeter.record.log_timing._SLOW", 1 << 62)
        yield


@pytest.fixture(autouse=True)
def _nothing_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test sees the warnings that a process sees once."""
    monkeypatch.setattr("tensormeter.environment.variables._warned", set())


@pytest.fixture(autouse=True)
def _no_agent_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that goes on in a thread sends to any process at the old port, and writes into the next test's log.

    Patches of the test hold for the agent until it ends: `monkeypatch` is undone after this.
    """
    yield
    join_agents("tensormeter-deliver-")


@pytest.fixture(scope="session", name="wait_for")
def wait_for_with_words() -> Callable[..., Any]:
    """Waits until a condition holds, and fails with its name if it never does."""
    return wait_for


@pytest.fixture(scope="session", name="eventually")
def wait_for_without_words() -> Callable[..., Any]:
    """Waits until a condition holds."""
    return eventually


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a ClickHouse for all tests. Each test uses another database."""
    pytest.importorskip("clickhouse_connect")
    folder = tmp_path_factory.mktemp("chdb")
    command = module_command("clickhouse_server", str(folder))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@pytest.fixture
def odd_disk(tmp_path: Path) -> Iterator[Callable[..., OddDisk]]:
    """Mounts file systems with odd manners: see `support.odd_disk`. Arguments are those of `OddDisk`, but for the folder."""
    disks: list[OddDisk] = []

    def mount(**options: object) -> OddDisk:
        folder = tmp_path / f"odd-disk-{len(disks)}"
        folder.mkdir()
        try:
            disks.append(OddDisk(folder, **options))
        except Unavailable as reason:
            pytest.skip(str(reason))
        return disks[-1]

    yield mount
    for disk in disks:
        disk.close()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool, in the folder of the test."""
    spool = Spool(tmp_path / "spool.sqlite")
    yield spool
    spool.close()


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """Mounts a tmpfs on a folder, with options of `mount`, until the test ends. Skips the test if that needs privileges."""
    mounted: list[Path] = []

    def mount(folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)]
        if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small tmpfs needs privileges")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # an agent may still hold its lock there


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that is up."""
    receiver = Receiver().start()
    yield receiver
    receiver.stop()


@pytest.fixture
def deliver(tmp_path: Path, receiver: Receiver) -> Iterator[Callable[..., Delivery]]:
    """Starts deliveries from the spool, which wait a millisecond instead of their delays. `delays` has the real ones.

    A second delivery to a destination replaces the first, as that of another agent.
    """
    deliveries: dict[str, Delivery] = {}

    def start(
        destination: str = "experiment",
        jitter: Callable[[float], float] | None = None,
        *,
        urgent: bool = False,
        **settings: Any,
    ) -> Delivery:
        delays: list[float] = []

        def note(delay: float) -> float:
            delays.append(delay)
            return 0.001

        if destination in deliveries:
            deliveries[destination].stop(30)
        resolved = Settings(**{"endpoint": receiver.url, "token": "secret", **settings})
        delivery = Delivery(destination, tmp_path / "spool.sqlite", resolved, lambda: None, jitter or note)
        deliveries[destination] = delivery
        delivery.delays = delays  # type: ignore[attr-defined]
        delivery.set_urgent(urgent)
        delivery.start()
        return delivery

    yield start
    for delivery in deliveries.values():
        delivery.stop(30)


@pytest.fixture
def run_settings(tmp_path: Path, receiver: Receiver) -> Callable[..., Settings]:
    """Makes settings of runs that deliver to the receiver and keep their files in the folder of the test."""

    def run_settings(**changes: Any) -> Settings:
        defaults = {
            "endpoint": receiver.url,
            "directory": tmp_path / "state",
            "buffer_directory": tmp_path / "rings",
            "agent": "thread",
            "schedule_delay": 0.05,
            "finish_timeout": 300,
        }
        return Settings(**defaults | changes)

    return run_settings


@pytest.fixture
def another_receiver() -> Iterator[Receiver]:
    receiver = Receiver().start()
    yield receiver
    receiver.stop()


@pytest.fixture
def answering() -> Callable[..., Behaviour]:
    return answer
