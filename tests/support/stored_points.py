"""The points of a run on a server, in a form that tests compare."""

from tensormeter.client.run import StoredRun

__all__ = ["points_of"]


def points_of(run: StoredRun) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each metric of the script, in the order of time."""
    names = sorted({metric.name for metric in run.metrics() if not metric.name.startswith("tensormeter.")})
    points: dict[str, list[tuple[int, float]]] = {}
    for name in names:
        for block in run.points(name):
            points.setdefault(name, []).extend(zip(block.step.tolist(), block.value.tolist(), strict=True))
    return points
