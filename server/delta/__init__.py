"""Makes patches: finds what two files have in common, and encodes the rest in the fewest bytes."""
