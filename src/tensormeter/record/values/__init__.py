"""Classification of logged values."""
