"""Field kits on the managers' side: planned, written onto a stick, signed, and looked at."""
