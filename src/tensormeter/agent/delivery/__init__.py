"""From the spool to the destinations: retries with backoff, and division of refused requests."""
