"""The spool, which stores encoded requests on disk until every destination has acknowledged them."""
