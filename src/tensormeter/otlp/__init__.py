"""The OTLP codec. The delivery pipeline writes with it, and the server reads with it.

`Batch` and `Event` are the in-memory representation. `encode` and `decode` convert them to and from OTLP bytes.
"""
