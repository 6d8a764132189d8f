"""Archive of projects: the folder of Parquet files and media that `tensormeter export --project` writes and `tensormeter import` reads.

docs/archive.md describes the files. The modules contain what the exporter and the importer share.
"""
