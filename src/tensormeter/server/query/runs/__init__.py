"""Run search: fields, filters, sort order and pages."""
