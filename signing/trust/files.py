"""How trusted metadata is named on the disk. Stands alone, for who reads the files without loading TUF."""

from urllib.parse import quote


def file_name(role: str) -> str:
    """The name under which a role is stored: percent-encoded, so that no role's name is a path."""
    return f"{quote(role, '')}.json"
