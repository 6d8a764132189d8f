"""Lists of names: prefixes, search, sections and pages."""
