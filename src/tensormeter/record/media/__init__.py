"""Images, tables and texts."""
