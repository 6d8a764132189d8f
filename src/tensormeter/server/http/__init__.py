"""HTTP as the server speaks it: errors, static files, hooks around requests, TLS, logs."""
