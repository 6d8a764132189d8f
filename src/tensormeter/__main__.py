"""Entry point of `python -m tensormeter`."""

from tensormeter.cli import main

main()
