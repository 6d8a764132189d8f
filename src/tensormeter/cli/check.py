"""`tensormeter check`."""

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
@click.option("--store", help="Check a ClickHouse database instead: clickhouse://HOST[:PORT]/DATABASE.")
@click.option("--full", is_flag=True, help="Let SQLite check a file of more than 1 GiB as a whole: one long read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
@click.pass_context
def check(context: click.Context, directory: Path | None, store: str | None, *, full: bool, as_json: bool) -> None:
    """Verify everything in a server's store, also while the server runs. Changes nothing.

    Prints a line for each damage. The exit status is 1 if there is any.
    """
    need_server()
    if store is not None:
        damaged = _report(_clickhouse(store), as_json=as_json)
        summary = "ClickHouse checked the tables of the database"
        counts: dict[str, int] = {}
    else:
        from tensormeter.server.store.sqlite.integrity.missing_file import missing_store

        file = store_folder(directory) / "tensormeter.db"
        absent = missing_store(file)
        if absent is not None:
            damaged = _report([("", absent)], as_json=as_json)
            counts, summary = {}, "checked nothing"
        elif not file.is_file():
            raise StoreError(f"there is no store in {file.parent}; give the server's data folder with --data")
        else:
            damaged, counts, summary = _sqlite(file, full=full, as_json=as_json)
    if as_json:
        click.echo(json.dumps({"damaged": damaged, "checked": counts}))
    else:
        click.echo(f"{summary}: {f'{damaged:,} damaged' if damaged else 'nothing is damaged'}")
    context.exit(1 if damaged else 0)


def _report(findings: Iterable[tuple[str, str]], *, as_json: bool) -> int:
    number = 0
    for about, what in findings:
        number += 1
        if as_json:
            click.echo(json.dumps({"about": about, "what": what}))
        else:
            click.echo(f"damaged: {about}: {what}" if about else f"damaged: {what}")
    return number


def _sqlite(file: Path, *, full: bool, as_json: bool) -> tuple[int, dict[str, int], str]:
    """Report what is damaged in a file. Returns how much is, rows that were checked by table, and a summary."""
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
        damaged += _report(((one.about, one.what) for one in inspection.all(full=full)), as_json=as_json)
    counts = dict(inspection.counts)
    empty = "no rows" if damaged else "an empty store"
    summary = f"checked {', '.join(f'{n:,} {table}' for table, n in counts.items() if n) or empty}"
    if inspection.unsealed:
        old = sum(inspection.unsealed.values())
        summary += f"; {old:,} rows of an older version have no checksum yet, and get theirs when they are next written"
    return damaged, counts, summary


def _clickhouse(store: str) -> Iterable[tuple[str, str]]:
    from tensormeter.server.store.clickhouse.inspection import check_tables

    return check_tables(parse_store(store))
