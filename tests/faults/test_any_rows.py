"""Rows of any names in any combination arrive whole, even if agents and the process itself are killed in between."""

import json
import signal
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.agents import agents_of, kill_agents

TRAINER = """
import json
run = tensormeter.init("faults", id=json.loads(ready()))
while (line := ready()) != "finish":
    for step, row in json.loads(line):
        run.log(row, step)
        count(step + 1)
run.finish(timeout=300)
"""

NAMES = st.one_of(
    st.sampled_from([f"experts/{number}" for number in range(40)]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "tensormeter.step"),
)
NUMBERS = st.one_of(
    st.floats(allow_nan=False), st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-5, 5), st.just(0.5)
)
ROWS = st.one_of(
    st.dictionaries(NAMES, NUMBERS, min_size=1, max_size=30),
    st.sampled_from([{"loss": 0.25}, {"loss": 0.5, "lr": 1}]),
    st.integers(1, 3000).map(lambda size: {f"wide/{number}": number / 7 for number in range(size)}),
)
ACTIONS = st.lists(
    st.one_of(st.lists(ROWS, min_size=1, max_size=40), st.just("kill the agent")), min_size=1, max_size=8
)


@pytest.mark.timeout(600)  # each of the examples starts a training process and its agents
def test_any_rows_arrive_whole_with_kills_in_between(train, environment, state, receiver, gone, wait_for):
    numbers = iter(range(1000))

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ACTIONS, st.booleans())
    def check(actions, dies):
        run = f"run-{next(numbers)}"
        trainer = train(TRAINER, run_id=run, buffer_bytes=8 << 20)
        trainer.ready()
        trainer.go(json.dumps(run))
        trainer.ready()
        logged = []
        for action in actions:
            if action == "kill the agent":
                kill_agents(state)
                continue
            rows = list(enumerate(action, len(logged)))
            logged += action
            trainer.go(json.dumps(rows))
            trainer.ready()
        assert trainer.returned == len(logged)
        if dies:
            trainer.process.send_signal(signal.SIGKILL)
            trainer.process.wait(60)
            if not agents_of(state):  # nobody is left who would start one
                sync = [sys.executable, "-m", "tensormeter", "sync", str(state)]
                assert subprocess.run(sync, env=environment, check=False, timeout=120).returncode == 0
        else:
            trainer.go("finish")
            trainer.finish()
        expected = Counter((step, tuple(sorted(row.items()))) for step, row in enumerate(logged))
        wait_for(lambda: _rows_of(receiver, run) == expected, "every row has arrived")
        gone()

    check()


def _rows_of(receiver, run):
    """(step, sorted values) of every accepted row of a run. A wide row may come in parts."""
    rows = {}
    for batch in receiver.batches():
        if batch.resource["tensormeter.run.id"] != run:
            continue
        steps = {}
        for gauge in batch.gauges:
            if gauge.name == "tensormeter.step":
                steps.update(zip(gauge.times.tolist(), gauge.values.tolist(), strict=True))
        for gauge in batch.gauges:
            for at, value in zip(gauge.times.tolist(), gauge.values.tolist(), strict=True):
                if gauge.name != "tensormeter.step":
                    row = rows.setdefault(steps[at], {})
                    assert gauge.name not in row
                    row[gauge.name] = value
    return Counter((step, tuple(sorted(row.items()))) for step, row in rows.items())
