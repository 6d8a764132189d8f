"""Attempt numbers of runs: counted on this machine, and settled with the server."""
