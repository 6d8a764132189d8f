"""The server's HTTP layer: error responses, static files, request hooks, TLS and logs."""
