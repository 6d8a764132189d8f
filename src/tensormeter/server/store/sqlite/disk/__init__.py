"""The disk that contains the SQLite file: durability, free space, checkpoints, and file system capabilities."""
