"""Delivery from the spool to the destinations, with retries, backoff and division of refused requests."""
