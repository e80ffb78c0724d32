"""The device's side of trust: the keeper process that verifies, the agent's end of it, and the time rule."""
