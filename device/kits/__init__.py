"""Field kits on the machine: sticks found, read without trust, judged, planned and offered to the update machine."""
