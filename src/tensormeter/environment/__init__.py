"""Environment variables that other software defines, and the settings that they give."""
