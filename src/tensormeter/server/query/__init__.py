"""Queries on a store: x axes, sampling, statistics over processes, and searching runs.

Input and output are columns; this package is independent of SQLite, HTTP and JSON.
"""
