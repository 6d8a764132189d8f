"""Authentication and authorization: tokens, the guard in front of every request, and access to single projects."""
