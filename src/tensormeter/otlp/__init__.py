"""The OTLP codec, which the pipeline uses to write and the server to read.

`Batch` and `Event` are the representation in memory. `encode` and `decode` convert them to and from the protocol's bytes.
"""
