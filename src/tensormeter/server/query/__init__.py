"""Queries on a store: points with x axes and sampling, statistics over processes, and run search.

This package works on columns of values, and does not depend on SQLite, HTTP or JSON.
"""
