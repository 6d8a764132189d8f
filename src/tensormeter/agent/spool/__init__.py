"""The spool: encoded requests on disk until every destination has acknowledged them."""
