"""The disk of the SQLite file: durability, free space, checkpoints, and the capabilities of its file system."""
