"""Attempt numbers of runs, which are counted on this machine and settled with the server."""
