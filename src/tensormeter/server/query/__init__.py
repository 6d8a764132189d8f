"""Queries on a store: x axes, sampling, statistics over processes, and run search.

This package takes and returns columns; it does not depend on SQLite, HTTP or JSON.
"""
