"""Ingestion of rings into the spool: rows are grouped into batches, and batches are encoded as requests."""
