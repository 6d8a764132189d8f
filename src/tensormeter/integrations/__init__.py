"""Adapters that let training frameworks record to tensormeter.

Each module imports its framework, and nothing of tensormeter but its public names.
"""
