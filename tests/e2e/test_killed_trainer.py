"""SIGKILL at a random instant loses no row whose `log` call had returned."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from support.servers import RestartableServer
from support.waiting import wait_for

KILLS = 10
SCRIPT = Path(__file__).with_name("rows_until_killed.py")


def test_every_row_of_a_killed_trainer_arrives(
    tmp_path: Path, server: RestartableServer, environment: dict[str, str]
) -> None:
    server.start()
    instants = random.Random()
    seed = instants.randrange(1 << 32)
    instants.seed(seed)
    for kill in range(KILLS):
        run_id = f"killed-{kill}"
        returned = kill_after(tmp_path / run_id, run_id, instants.randrange(1, 30_000), environment)
        wait_for(lambda run_id=run_id: server.state(run_id) == "crashed", "the run is known to have crashed")
        wait_for(lambda run_id=run_id, returned=returned: rows_at(server, run_id) >= returned, "the rows are there")
        points = server.points(run_id)
        # The row of the call that was interrupted may be there as well.
        rows = max(step for _, step, _ in points) + 1
        assert returned <= rows <= returned + 1, f"seed {seed}, kill {kill}"
        assert points == expected(rows), f"seed {seed}, kill {kill}"


def kill_after(counter: Path, run_id: str, rows: int, environment: dict[str, str]) -> int:
    """Kill a trainer once it has logged so many rows, and say how many calls had returned."""
    counter.write_bytes(bytes(8))
    trainer = subprocess.Popen([sys.executable, str(SCRIPT), str(counter), run_id], env=environment)
    try:
        wait_for(lambda: calls(counter) >= rows or trainer.poll() is not None, "rows are logged")
        assert trainer.poll() is None
    finally:
        trainer.kill()
        trainer.wait()
    return calls(counter)


def rows_at(server: RestartableServer, run_id: str) -> int:
    summary = server.get(f"/runs/{run_id}")["summary"]
    return min(summary.get(metric, {}).get("count", 0) for metric in ("loss", "negative", "count"))


def calls(counter: Path) -> int:
    return int.from_bytes(counter.read_bytes(), sys.byteorder)


def expected(rows: int) -> Counter[tuple[str, int, str]]:
    return Counter(
        (metric, step, float(value).hex())
        for step in range(rows)
        for metric, value in (("loss", step * 0.5), ("negative", -float(step)), ("count", step))
    )
