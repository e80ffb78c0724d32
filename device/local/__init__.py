"""What programs on the machine get of its results while they are made: a Unix socket, over which nothing changes."""
