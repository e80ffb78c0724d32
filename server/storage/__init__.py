"""Where the server keeps things: the catalog (SQLite or PostgreSQL) and the blobs (a folder or a bucket).

No SQL and no bucket word leaves this package.
"""
