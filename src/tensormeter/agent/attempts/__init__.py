"""Attempt numbers of runs: counted on this machine, and then settled with the server."""
