"""Field kits on the server: what sticks bring home from machines."""
