"""The disk under the SQLite file: durability, free space, checkpoints, and what its file system can do."""
