"""Finding runs: fields, filters, order, pages."""
