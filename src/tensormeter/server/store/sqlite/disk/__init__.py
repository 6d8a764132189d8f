"""The disk of the SQLite file: durability, free space, checkpoints, and file system capabilities."""
