"""Takes container images into a release: from an OCI layout, an archive, an engine, a registry.

Nothing of what comes in is believed before its digest held, nothing in it becomes a path, and all of it is bounded.
"""
