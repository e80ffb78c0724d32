"""The server's doors: one listener for devices, one for people."""
