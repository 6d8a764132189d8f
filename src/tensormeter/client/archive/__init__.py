"""Export of whole projects to an archive; see docs/archive.md."""

from tensormeter.client.archive.project import ExportProgress, ExportSummary, export_archive

__all__ = ["ExportProgress", "ExportSummary", "export_archive"]
