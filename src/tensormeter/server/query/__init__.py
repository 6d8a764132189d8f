"""What the API makes of a store's columns: axes, sampling, statistics over processes, filters and order of runs.

Nothing here knows SQLite, HTTP or JSON: columns in, columns out.
"""
