"""Self-repair: small checks, one file each, that find, name, mend and report one kind of fault."""
