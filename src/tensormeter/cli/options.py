"""The `--endpoint` option shared by all commands that connect to a server."""

import click

__all__ = ["endpoint_option"]

endpoint_option = click.option(
    "--endpoint",
    metavar="URL",
    help="Base URL of the server.  [default: $TENSORMETER_ENDPOINT, or the server on this machine]",
)
