"""Containers of a release on the machine: the engine is told what the update record says, and decides nothing."""
