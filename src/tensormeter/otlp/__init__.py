"""The OTLP codec, which the delivery pipeline uses for writing and the server for reading.

`Batch` and `Event` are the in-memory representation. `encode` and `decode` convert them to and from OTLP bytes.
"""
