"""Authentication: tokens, the guard in front of every request, and the projects that a token may see."""
