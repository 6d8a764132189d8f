"""Queries on a store: points with x axes and sampling, statistics over processes, and run search.

This package takes and returns columns, independently of SQLite, HTTP and JSON.
"""
