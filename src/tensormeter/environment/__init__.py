"""Environment variables that other software defines, and the settings derived from them."""
