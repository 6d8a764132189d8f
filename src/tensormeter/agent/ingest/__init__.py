"""From rings to the spool: rows are grouped into batches, and batches are encoded as requests."""
