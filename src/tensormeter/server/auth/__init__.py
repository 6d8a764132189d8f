"""Authentication and authorization: tokens, the guard that checks every request, and access to single projects."""
