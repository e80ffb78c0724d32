"""The commands of `headland`, a file a group."""
