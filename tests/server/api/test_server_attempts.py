"""Attempts at a run: a later one shadows the steps that it repeats; nothing is deleted."""

import json

import numpy as np
import pytest

from tensormeter.otlp.batch import Batch, Event, Histogram

T0 = 1_750_000_000_000_000_000
SECOND = 10**9


def attempt(make, run, number, steps, *, process, rank=None, start, value):
    """Sends the rows of one process of an attempt, a row a second."""
    resource = {"tensormeter.run.attempt": number} | ({} if rank is None else {"tensormeter.rank": rank})
    rows = [(T0 + (start + i) * SECOND, step, {"loss": value(step)}) for i, step in enumerate(steps)]
    return make.rows(run, rows, process=process, project="attempts", **resource)


@pytest.fixture(scope="module")
def resumed(server, make):
    """Steps 0 to 99, then again from 60 to 119, then again from 40 to 79: 40 to 59 were saved before they were lost."""
    for number, (steps, start) in enumerate([(range(100), 0), (range(60, 120), 200), (range(40, 80), 400)], 1):
        batch = attempt(
            make,
            "resumed",
            number,
            steps,
            process=f"p{number}",
            start=start,
            value=lambda step, n=number: step + n / 10,
        )
        assert server.metrics(batch).status == 200
    return server


def line(server, run, **query):
    return [
        (series["process"], series["attempt"], series["x"], series["y"])
        for series in server.query(run, metrics=["loss"], **query)["series"]
    ]


def test_series_are_the_effective_line(resumed):
    x, y = [*range(40), *range(40, 80)], [*(step + 0.1 for step in range(40)), *(step + 0.3 for step in range(40, 80))]
    assert line(resumed, "resumed") == [("p3", 3, x, y)]
    ((_, _, times, by_time),) = line(resumed, "resumed", x="relative")
    assert by_time == y
    assert (times[39], times[40]) == (39.0, 400.0)
    ((_, _, _, by_itself),) = line(resumed, "resumed", x="metric:loss")
    assert by_itself == y
    (full,) = resumed.get("/api/v1/runs/resumed/series", metric="loss")["series"]
    assert (full["process"], full["attempt"], full["step"], full["value"]) == ("p3", 3, x, y)
    (by_time,) = resumed.get("/api/v1/runs/resumed/series", metric="loss", x="time")["series"]
    assert by_time["value"] == y
    assert resumed.get("/api/v1/runs/resumed/series", metric="loss", start=50, stop=90)["series"][0]["step"] == list(
        range(50, 80)
    )


@pytest.mark.parametrize(("number", "steps"), [(1, range(100)), (2, range(60, 120)), (3, range(40, 80))])
def test_an_attempt_by_itself_is_whole(resumed, number, steps):
    y = [step + number / 10 for step in steps]
    assert line(resumed, "resumed", attempt=number) == [(f"p{number}", number, list(steps), y)]
    (full,) = resumed.get("/api/v1/runs/resumed/series", metric="loss", attempt=number)["series"]
    assert (full["step"], full["value"]) == (list(steps), y)


def test_all_attempts_are_apart(resumed):
    assert [(series[0], series[1], len(series[2])) for series in line(resumed, "resumed", attempt="all")] == [
        ("p1", 1, 100),
        ("p2", 2, 60),
        ("p3", 3, 40),
    ]
    assert len(resumed.get("/api/v1/runs/resumed/series", metric="loss", attempt="all")["series"]) == 3
    assert line(resumed, "resumed", attempt=4) == []
    assert [process["attempt"] for process in resumed.get("/api/v1/runs/resumed")["processes"]] == [1, 2, 3]
    (loss,) = [metric for metric in resumed.get("/api/v1/runs/resumed/metrics")["metrics"] if metric["name"] == "loss"]
    assert (loss["points"], loss["processes"]) == (200, 1)


def test_an_evaluation_that_resumes_a_run_hides_no_other_metric(server, make):
    server.metrics(attempt(make, "evaluated", 1, range(20), process="p1", rank=0, start=0, value=float))
    rows = [(T0 + (100 + step) * SECOND, step, {"test/accuracy": 0.9}) for step in range(5)]
    rows.append((T0 + 110 * SECOND, 15, {"loss": 1.5}))
    resource = {"tensormeter.run.attempt": 2, "tensormeter.rank": 0}
    assert server.metrics(make.rows("evaluated", rows, process="p2", project="attempts", **resource)).status == 200
    y = [*map(float, range(15)), 1.5]
    assert line(server, "evaluated", max_points=0) == [("p2", 2, [*range(16)], y)]
    (accuracy,) = server.query("evaluated", metrics=["test/accuracy"], max_points=0)["series"]
    assert accuracy["y"] == [0.9] * 5
    (full,) = server.get("/api/v1/runs/evaluated/series", metric="loss")["series"]
    assert full["value"] == y
    assert server.get("/api/v1/runs/evaluated/ranks", metric="loss")["max"] == y


def test_attempts_and_what_they_hide_are_listed(resumed, make):
    document = resumed.get("/api/v1/runs/resumed/attempts", system="false")
    hidden = [{"metric": "loss", "attempt": 1, "step": 40}, {"metric": "loss", "attempt": 2, "step": 40}]
    assert document == {"attempts": [1, 2, 3], "hidden": hidden, "next": None}
    for number, steps in ((1, range(5)), (2, range(5, 9))):
        batch = attempt(make, "continued", number, steps, process=f"p{number}", start=100 * number, value=float)
        assert resumed.metrics(batch).status == 200
    assert resumed.get("/api/v1/runs/continued/attempts") == {"attempts": [1, 2], "hidden": [], "next": None}


def test_the_curves_of_parents_can_be_read_up_to_the_fork(server, make):
    forks = {"root": None, "middle": {"run": "root", "step": 4}, "leaf": {"run": "middle", "step": 6}}
    forks |= {"lost": {"run": "nowhere", "step": 1}, "loop": {"run": "loop", "step": 1}}
    for number, (run, parent) in enumerate(forks.items()):
        body = {} if parent is None else {"forked_from": parent}
        server.events(make.resource(run, project="forks"), Event("tensormeter.run.start", T0 + number, body))
        rows = [(T0 + step * SECOND, step, {"loss": 10.0 * number + step}) for step in range(3 * number, 10)]
        server.metrics(make.rows(run, rows, project="forks"))

    def curves(*runs, **query):
        answer = server.query(*runs, project="forks", metrics=["loss"], parents=True, max_points=0, **query)
        return answer, [(line["run"], line.get("child"), line["x"]) for line in answer["series"]]

    middle, root = ("middle", "leaf", [3, 4, 5, 6]), ("root", "leaf", [0, 1, 2, 3, 4])
    answer, lines = curves("leaf")
    assert lines == [("leaf", None, [6, 7, 8, 9]), middle, root]
    assert curves("leaf", stop=4)[1] == [("middle", "leaf", [3]), ("root", "leaf", [0, 1, 2, 3])]
    assert [line[:2] for line in curves("lost", "loop", "root")[1]] == [("lost", None), ("root", None)]
    assert len(curves("leaf", x="time")[1]) == 1
    late = make.rows(
        "root", [(T0 + 99 * SECOND, 2, {"loss": 0.5}), (T0 + 100 * SECOND, 50, {"loss": 1.5})], project="forks"
    )
    server.metrics(late)
    answer, lines = curves("leaf", after=answer["cursor"])
    assert (answer["reset"], lines) == (False, [("root", "leaf", [2])])


@pytest.mark.parametrize("wrong", ["0", "-1", "first", "1.5"])
def test_a_wrong_attempt_is_told(resumed, wrong):
    status, answer = resumed.ask("/api/v1/runs/resumed/series", metric="loss", attempt=wrong)
    assert status == 400
    assert wrong in json.dumps(answer)


def test_ranks_go_on_as_themselves(server, make):
    """Each rank has its line, whichever of them began first; the attempt begins with the lowest step of all."""
    for number, first, start in ((1, 0, 0), (2, 10, 100)):
        for rank in range(3):
            steps = range(first + (rank if number == 2 else 0), 20)
            batch = attempt(
                make,
                "ranks",
                number,
                steps,
                process=f"a{number}r{rank}",
                rank=rank,
                start=start,
                value=lambda step, rank=rank, number=number: 1000.0 * number + 100 * rank + step,
            )
            server.metrics(batch)
    lines = {process: x for process, _, x, _ in line(server, "ranks")}
    assert lines == {
        "a2r0": list(range(20)),
        "a2r1": [*range(10), *range(11, 20)],
        "a2r2": [*range(10), *range(12, 20)],
    }
    ranks = server.get("/api/v1/runs/ranks/ranks", metric="loss")
    assert (ranks["processes"], ranks["x"], ranks["max"][5], ranks["max"][15]) == (3, list(range(20)), 1205.0, 2215.0)
    assert server.get("/api/v1/runs/ranks/ranks", metric="loss", attempt="all")["processes"] == 6
    assert server.get("/api/v1/runs/ranks/ranks", metric="loss", attempt=1)["max"][15] == 1215.0


def test_processes_that_cannot_be_told_apart_are_cut_and_not_joined(server, make):
    for process in ("x", "y"):
        server.metrics(attempt(make, "unranked", 1, range(10), process=process, start=0, value=float))
    server.metrics(attempt(make, "unranked", 2, range(5, 10), process="z", start=100, value=float))
    assert [(series[0], series[2]) for series in line(server, "unranked")] == [
        ("x", list(range(5))),
        ("y", list(range(5))),
        ("z", list(range(5, 10))),
    ]


def test_what_has_no_step_is_not_shadowed(server, make):
    resource = make.resource("machine", process="node", project="attempts")
    server.metrics(Batch(resource, [make.gauge("system.load", [T0 + i * SECOND for i in range(200)], [1.0] * 200)]))
    server.metrics(attempt(make, "machine", 1, range(50), process="p1", start=0, value=float))
    server.metrics(attempt(make, "machine", 2, range(20, 50), process="p2", start=100, value=float))
    (series,) = server.query("machine", metrics=["system.load"], x="time", max_points=0)["series"]
    assert series["total"] == 200


def test_distributions_are_shadowed_too(server, make):
    for number, first in ((1, 0), (2, 5)):
        steps = range(first, 10)
        batch = attempt(make, "shapes", number, steps, process=f"p{number}", start=100 * number, value=float)
        times, nothing = batch.series[0].times, np.zeros(len(steps))
        counts = np.full(len(steps), number, np.uint64)
        buckets = np.stack([counts, np.zeros_like(counts)], axis=1)
        shapes = Histogram("grads", times, times, counts, nothing, nothing, nothing, np.array([1.0]), buckets)
        assert server.metrics(Batch(batch.resource, [*batch.series, shapes])).status == 200
    histograms = server.get("/api/v1/runs/shapes/histograms", metric="grads")
    assert [(point["x"], point["count"]) for point in histograms["points"]] == [
        (step, 1 if step < 5 else 2) for step in range(10)
    ]
    assert server.get("/api/v1/runs/shapes/histograms", metric="grads", attempt=1)["total"] == 10


def test_who_asks_for_what_is_new_is_told_when_an_attempt_begins(server, make):
    server.metrics(attempt(make, "watched", 1, range(10), process="p1", start=0, value=float))
    cursor = server.query("watched", metrics=["loss"])["cursor"]
    server.metrics(attempt(make, "watched", 1, range(10, 20), process="p1", start=10, value=float))
    answer = server.query("watched", metrics=["loss"], after=cursor)
    assert (answer["reset"], answer["series"][0]["x"]) == (False, list(range(10, 20)))
    server.metrics(attempt(make, "watched", 2, range(15, 18), process="p2", start=100, value=float))
    answer = server.query("watched", metrics=["loss"], after=answer["cursor"])
    assert (answer["reset"], answer["series"][0]["x"]) == (True, list(range(18)))
    server.metrics(attempt(make, "watched", 2, range(18, 30), process="p2", start=110, value=float))
    answer = server.query("watched", metrics=["loss"], after=answer["cursor"])
    assert (answer["reset"], answer["series"][0]["x"]) == (False, list(range(18, 30)))
    # What the first attempt had spooled comes late, and is shadowed all the same.
    server.metrics(attempt(make, "watched", 1, range(20, 25), process="p1", start=20, value=float))
    assert server.query("watched", metrics=["loss"], after=answer["cursor"])["series"] == []
    assert line(server, "watched")[0][2] == list(range(30))


def test_first_steps_outlive_the_server(start, make):
    server = start()
    server.metrics(attempt(make, "kept", 1, range(20), process="p1", start=0, value=float))
    server.metrics(attempt(make, "kept", 2, range(5, 8), process="p2", start=100, value=float))
    cursor = server.query("kept", metrics=["loss"])["cursor"]
    server.kill()
    server = start()
    assert line(server, "kept")[0][2] == list(range(8))
    server.metrics(attempt(make, "kept", 2, range(3, 5), process="p2", start=110, value=float))
    answer = server.query("kept", metrics=["loss"], after=cursor)
    assert (answer["reset"], answer["series"][0]["x"]) == (True, list(range(8)))


def test_a_process_during_a_later_attempt_is_not_shadowed_by_it(server, make):
    """A node that counts its attempts by itself may say less than the others."""
    server.metrics(attempt(make, "together", 1, range(10), process="old", rank=0, start=0, value=float))
    server.metrics(attempt(make, "together", 3, range(5, 20), process="new0", rank=0, start=100, value=float))
    server.metrics(attempt(make, "together", 2, range(5, 20), process="new1", rank=1, start=101, value=float))
    assert [(series[0], series[2]) for series in line(server, "together")] == [
        ("new0", list(range(20))),
        ("new1", list(range(5, 20))),
    ]


def ask(server, run, **query):
    return server.get(f"/api/v1/runs/{run}/attempt", **{"project": "attempts", **query})


def test_a_process_is_given_the_number_of_its_attempt_and_the_last_step(server, make):
    assert ask(server, "asked", process="a") == {"attempt": 1, "last_step": None}
    assert ask(server, "asked", process="a", resume="true") == {"attempt": 2, "last_step": None}
    server.metrics(attempt(make, "asked", 1, range(10), process="p1", start=0, value=float))
    server.metrics(attempt(make, "asked", 2, range(5, 20), process="p2", start=100, value=float))
    assert ask(server, "asked", process="p1") == {"attempt": 1, "last_step": None}
    assert ask(server, "asked", process="p2") == {"attempt": 2, "last_step": 9}
    assert ask(server, "asked", process="new", resume="true") == {"attempt": 3, "last_step": 19}
    assert ask(server, "asked", process="new", least="9") == {"attempt": 9, "last_step": 19}
    assert ask(server, "asked", process="new", number="2") == {"attempt": 2, "last_step": 9}
    assert ask(server, "asked", process="new", project="another") == {"attempt": 1, "last_step": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", "-1"),
        ("rank", "x"),
        ("world_size", "9" * 30),
        ("least", "0"),
        ("number", "0"),
        ("number", str(1 << 40)),
        ("resume", "allow"),
        ("process", "x" * 2000),
        ("launch", "x" * 2000),
    ],
)
def test_a_wrong_question_about_an_attempt_is_refused(server, name, value):
    status, answer = server.ask("/api/v1/runs/asked/attempt", project="attempts", **{name: value})
    assert status == 400
    assert name in json.dumps(answer)
