"""The OTLP codec. The delivery pipeline encodes requests with it, and the server decodes them.

`Batch` and `Event` are the in-memory representation. `encode` and `decode` convert them to OTLP bytes and back.
"""
