"""From rings to the spool: rows become batches, batches become encoded requests."""
