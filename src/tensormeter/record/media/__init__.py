"""Images, tables and text items."""
