"""Contents of a server after an import, and the table that the import command prints."""

import json
from typing import Any

from click.testing import Result

from support.servers import Server

__all__ = ["ImportServer", "counted", "left_out"]

_CHANGING = {"last_time", "lag", "points"}
"""Fields of a run that tell when its data arrived, or how often."""


class ImportServer(Server):
    """A server that files are imported into."""

    def contents(self, project: str) -> dict[str, Any]:
        """All that the API returns for the runs of a project, except when it arrived."""
        runs = {}
        for listed in self.get("/api/v1/runs", project=project)["runs"]:
            where = f"/api/v1/runs/{listed['id']}"
            run = self.get(where, project=project)
            metrics = self.get(f"{where}/metrics", project=project, limit=1000)["metrics"]
            for statistics in run["summary"].values():  # a server adds values in any order
                statistics["mean"] = None if statistics.get("mean") is None else round(statistics["mean"], 9)
            names = {True: set(), False: set()}
            for metric in metrics:
                names["histogram" in metric["kind"]].add(metric["name"])
            events = self.get(f"{where}/events", project=project, limit=1000)["events"]
            runs[run["name"]] = {
                "run": {key: value for key, value in run.items() if key not in _CHANGING},
                "series": {name: self.series(listed["id"], name, project) for name in sorted(names[False])},
                "histograms": {
                    name: self.get(f"{where}/histograms", project=project, metric=name)["points"]
                    for name in sorted(names[True])
                },
                "events": sorted(
                    ({**event, "id": None} for event in events), key=lambda e: json.dumps(e, sort_keys=True)
                ),
                "logs": [line["text"] for line in self.get(f"{where}/logs", project=project)["lines"]],
            }
        return runs

    def series(self, run: str, metric: str, project: str) -> list[dict[str, Any]]:
        return self.get(f"/api/v1/runs/{run}/series", project=project, metric=metric, x="step")["series"]


def left_out(result: Result) -> dict[str, int]:
    """Counts of what was left out, from the table that the command prints."""
    lines = [line.removeprefix("left out: ") for line in result.output.splitlines() if line.startswith("left out: ")]
    return {kind.strip(): int(count.replace(",", "")) for kind, count in (line.rsplit(maxsplit=1) for line in lines)}


def counted(result: Result) -> dict[str, int]:
    """Counts of what was imported, from the same table."""
    lines = [line.rsplit(maxsplit=1) for line in result.output.splitlines()]
    nouns = ("runs", "points", "media", "log lines")
    return {line[0].strip(): int(line[1].replace(",", "")) for line in lines if line and line[0].strip() in nouns}
