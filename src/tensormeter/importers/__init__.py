"""Importers: they read the files of other trackers and send them to a server as OTLP requests.

Each source is a module that yields the runs it holds as calls on `RunRequests`. The requests have IDs that are derived
from their contents, so a repeated or interrupted import changes nothing on the server.
"""
