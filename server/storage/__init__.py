"""Catalog and blobs. No SQL and no bucket word is spoken above this package."""
