"""The OTLP codec: what the pipeline writes and the server reads.

`Batch` and `Event` are the columns in memory; `encode` and `decode` turn them into the protocol's bytes and back.
"""
