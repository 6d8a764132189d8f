"""Child processes and hooks log into the run that their parent began."""

from collections import Counter
from pathlib import Path

import pytest

from support.optional import needs_torch
from support.processes import run_python
from support.servers import Points, RestartableServer
from support.waiting import wait_for

pytestmark = needs_torch
SCRIPT = Path(__file__).with_name("children.py")


def expected(*, forked: bool) -> Points:
    rows = [("parent", 0, 0.0), ("hook", 3, 6.0), ("parent", 4, 4.0), ("spawned", 0, 0.0), ("spawned", 1, 0.5)]
    rows += [("loader/spawn", index, float(index * index)) for index in range(20)]
    if forked:
        rows += [("loader/fork", index, float(index * index)) for index in range(20)]
        rows += [("parent", 1, 1.0), ("forked", 2, 2.0)]
    return Counter((metric, step, value.hex()) for metric, step, value in rows)


@pytest.mark.parametrize("after_fork", ["record", "ignore"])
def test_rows_of_every_kind_of_child_arrive_once(
    server: RestartableServer, environment: dict[str, str], after_fork: str
) -> None:
    server.start()
    script = run_python(SCRIPT, "family", environment=environment | {"TENSORMETER_AFTER_FORK": after_fork}, check=True)
    warned = "ignored log() in a forked child process"
    assert (warned in script.stderr) == (after_fork == "ignore")
    wanted = expected(forked=after_fork == "record")
    wait_for(lambda: server.points("family").total() >= wanted.total(), "the children's rows arrive")
    assert server.points("family") == wanted
    wait_for(lambda: server.state("family") == "finished", "the end arrives")
    titles = [event["body"]["title"] for event in server.get("/runs/family/events?name=tensormeter.alert")["events"]]
    assert titles == (["from a forked child"] if after_fork == "record" else [])
    run = server.get("/runs/family")
    # Two loaders with two workers each, two spawned ranks, one fork, and the parent, which alone says how the run ends.
    assert len(run["processes"]) == (8 if after_fork == "record" else 5)
    assert [process["state"] for process in run["processes"]].count("finished") == 1
    assert [process["state"] for process in run["processes"]].count(None) == len(run["processes"]) - 1
