"""The command `tensormeter check`."""

import json
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import click

from tensormeter.cli.maintain import data_option, need_server, store_folder
from tensormeter.cli.serve import parse_store
from tensormeter.errors import StoreError

__all__ = ["check"]


@click.command()
@data_option
@click.option("--store", metavar="URL", help="Check a ClickHouse database instead: clickhouse://HOST[:PORT]/DATABASE.")
@click.option(
    "--full",
    is_flag=True,
    help="Run SQLite's integrity check even if the file is larger than 1 GiB, in one long read transaction.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
@click.pass_context
def check(context: click.Context, directory: Path | None, store: str | None, *, full: bool, as_json: bool) -> None:
    """Verify all data in a server's store, even while the server runs.

    The command prints one line per damaged item, and changes nothing. The exit status is 1 if anything is damaged.
    """
    need_server()
    if store is not None:
        damaged = _report(_clickhouse(store), as_json=as_json)
        summary = "ClickHouse checked the database's tables"
        counts: dict[str, int] = {}
    else:
        from tensormeter.server.store.sqlite.integrity.missing_file import missing_store

        file = store_folder(directory) / "tensormeter.db"
        absent = missing_store(file)
        if absent is not None:
            damaged = _report([("", absent)], as_json=as_json)
            counts, summary = {}, "checked nothing"
        elif not file.is_file():
            raise StoreError(f"no store in {file.parent}; set --data to the server's data folder")
        else:
            damaged, counts, summary = _sqlite(file, full=full, as_json=as_json)
    if as_json:
        click.echo(json.dumps({"damaged": damaged, "checked": counts}))
    else:
        click.echo(f"{summary}: {f'{damaged:,} damaged' if damaged else 'nothing is damaged'}")
    context.exit(1 if damaged else 0)


def _report(findings: Iterable[tuple[str, str]], *, as_json: bool) -> int:
    number = 0
    for item, problem in findings:
        number += 1
        if as_json:
            click.echo(json.dumps({"about": item, "what": problem}))
        else:
            click.echo(f"damaged: {item}: {problem}" if item else f"damaged: {problem}")
    return number


def _sqlite(file: Path, *, full: bool, as_json: bool) -> tuple[int, dict[str, int], str]:
    """Report damage in a SQLite file.

    Return the number of damaged items, the number of checked rows per table, and a summary.
    """
    from tensormeter.server.store.models.errors import DamagedError
    from tensormeter.server.store.sqlite.integrity.inspection import Inspection, open_read_only
    from tensormeter.server.store.sqlite.integrity.wal_check import lost_transactions
    from tensormeter.server.store.sqlite.transaction import may_be_damage

    lost = lost_transactions(file)
    try:
        connection = open_read_only(file)
    except StoreError as error:
        if not isinstance(error, DamagedError) and not may_be_damage(error.__cause__):
            raise
        return _report([("", str(error))], as_json=as_json), {}, "checked nothing"
    with closing(connection):
        inspection = Inspection(connection)
        damaged = _report((("", lost),) if lost else (), as_json=as_json)
        findings = ((finding.about, finding.what) for finding in inspection.all(full=full))
        damaged += _report(findings, as_json=as_json)
    counts = dict(inspection.counts)
    empty = "no rows" if damaged else "an empty store"
    summary = f"checked {', '.join(f'{n:,} {table}' for table, n in counts.items() if n) or empty}"
    if inspection.unsealed:
        old = sum(inspection.unsealed.values())
        summary += f"; {old:,} rows from an older version have no checksum yet; the next write to each row adds one"
    return damaged, counts, summary


def _clickhouse(store: str) -> Iterable[tuple[str, str]]:
    from tensormeter.server.store.clickhouse.inspection import check_tables

    return check_tables(parse_store(store))
