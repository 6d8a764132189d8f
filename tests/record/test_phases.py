"""Phases and steps on the host, by a clock that is set by hand."""

import threading

import pytest
from phases_rig import Rig

from support.optional import torch
from tensormeter import UsageError
from tensormeter.record.phases.phases import _MAX_EVENTS, DATA_LOADING


@pytest.fixture
def rig(clock):
    return Rig(clock, None)


def host(row, phase):
    return row["phase.duration", phase, "host"]


class TestHost:
    def test_a_step_and_its_phases_are_one_row(self, rig):
        with rig.phases.step(None, 32):
            rig.phase(DATA_LOADING, 1.0)
            rig.phase("model_forward", 2.0)
            rig.phase("model_backward", 4.0)
            rig.clock.pass_(1.0)
        ((step, row),) = rig.rows
        assert step == 0
        assert row == {
            ("step.duration", "", "host"): 8.0,
            ("step.throughput", "", ""): 4.0,
            ("step.data_loading.share", "", ""): 0.125,
            ("phase.duration", DATA_LOADING, "host"): 1.0,
            ("phase.duration", "model_forward", "host"): 2.0,
            ("phase.duration", "model_backward", "host"): 4.0,
        }

    def test_what_passes_between_steps_is_waiting_for_data(self, rig):
        rig.step(3.0)
        rig.clock.pass_(1.0)
        rig.step(3.0, items=8)
        first, second = (row for _, row in rig.rows)
        assert first["step.data_loading.share", "", ""] == 0.0
        assert second["step.data_loading.share", "", ""] == 0.25
        assert second["step.throughput", "", ""] == 2.0
        assert second["step.duration", "", "host"] == 3.0

    def test_unless_a_phase_says_otherwise(self, rig):
        rig.step(3.0)
        rig.phase("evaluation", 100.0)
        rig.clock.pass_(1.0)
        rig.step(3.0)
        (_, row) = rig.rows[1]
        assert row["step.data_loading.share", "", ""] == 0.25
        assert host(row, "evaluation") == 100.0
        rig.step(3.0)
        assert rig.rows[2][1]["step.data_loading.share", "", ""] == 0.0
        assert len(rig.rows) == 3

    def test_a_phase_for_the_data_is_not_counted_twice(self, rig):
        for _ in range(2):
            rig.phase(DATA_LOADING, 1.0)
            rig.step(3.0, items=8)
        assert [row["step.data_loading.share", "", ""] for _, row in rig.rows] == [0.25, 0.25]
        assert [row["step.throughput", "", ""] for _, row in rig.rows] == [2.0, 2.0]
        assert [host(row, DATA_LOADING) for _, row in rig.rows] == [1.0, 1.0]

    def test_without_steps_each_outermost_phase_is_a_row(self, rig):
        rig.next_step = 7
        with rig.phases.phase("evaluation"):
            rig.phase("model_forward", 1.0)
            rig.phase("model_forward", 2.0)
        rig.phase("checkpoint_save", 5.0)
        assert [step for step, _ in rig.rows] == [7, 7]
        assert rig.rows[0][1] == {
            ("phase.duration", "model_forward", "host"): 3.0,
            ("phase.duration", "evaluation", "host"): 3.0,
        }
        assert host(rig.rows[1][1], "checkpoint_save") == 5.0

    def test_what_is_left_at_the_end(self, rig):
        rig.step()
        rig.phase("checkpoint_save", 5.0)
        assert len(rig.rows) == 1
        rig.phases.flush()
        rig.phases.flush()
        assert len(rig.rows) == 2
        assert rig.rows[1] == (0, {("phase.duration", "checkpoint_save", "host"): 5.0})

    def test_many_phases_outside_of_steps_are_bounded(self, rig):
        rig.step()
        for _ in range(2 * _MAX_EVENTS):
            rig.phase("evaluation", 1.0)
        assert len(rig.rows) == 3
        assert host(rig.rows[1][1], "evaluation") == _MAX_EVENTS

    def test_steps_are_numbered_like_those_of_log(self, rig):
        rig.step()
        rig.step()
        rig.next_step = 41  # 40 was logged
        rig.step()
        rig.step(step=7)
        rig.step()
        with rig.phases.step(None, None):
            rig.next_step = 101  # 100 is logged
        rig.step()
        assert [step for step, _ in rig.rows] == [0, 1, 41, 7, 41, 100, 101]

    def test_exceptions_pass_through_and_times_are_kept(self, rig):
        def fail():
            with rig.phases.step(None, None), rig.phases.phase("model_forward"):
                rig.clock.pass_(2.0)
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            fail()
        assert host(rig.rows[0][1], "model_forward") == 2.0
        rig.step(1.0)
        assert rig.rows[1][1]["step.duration", "", "host"] == 1.0

    def test_a_step_in_a_step_is_an_error(self, rig):
        with rig.phases.step(None, None):
            with pytest.raises(UsageError, match="another step is still open"), rig.phases.step(None, None):
                pass
            rig.clock.pass_(1.0)
        rig.step()
        assert len(rig.rows) == 2

    @pytest.mark.parametrize("name", ["", 5, None])
    def test_names(self, rig, name):
        with pytest.raises(UsageError, match=r"run\.phase"):
            rig.phases.phase(name)

    @pytest.mark.parametrize(
        "arguments", [(1.0, None), (1 << 63, None), (True, None), (None, "8"), (None, torch.ones(()))]
    )
    def test_arguments(self, rig, arguments):
        with pytest.raises(UsageError, match=r"run\.step"):
            rig.phases.step(*arguments)

    def test_an_instant_has_no_throughput(self, rig):
        with rig.phases.step(None, 5):
            pass
        assert set(rig.rows[0][1]) == {("step.duration", "", "host")}

    def test_each_thread_has_its_own_phases(self, rig):
        entered = threading.Barrier(3)

        def run(name):
            with rig.phases.step(None, None), rig.phases.phase(name):
                entered.wait(300)

        threads = [threading.Thread(target=run, args=(f"p{i}",)) for i in range(2)]
        for thread in threads:
            thread.start()
        with rig.phases.step(None, None), rig.phases.phase("main"):
            entered.wait(300)
            for thread in threads:
                thread.join(300)
        phases = [{phase for metric, phase, _ in row if metric == "phase.duration"} for _, row in rig.rows]
        assert sorted(map(sorted, phases)) == [["main"], ["p0"], ["p1"]]

    def test_a_layout_is_asked_for_once(self, rig):
        for _ in range(5):
            rig.step()
        assert rig.layouts == 1
        rig.full = True
        with rig.phases.step(None, None):
            rig.phase("another")
        assert len(rig.rows) == 5
