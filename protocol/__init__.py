"""What server, device and manager's tool must agree on: words, messages, formats, limits. No I/O and no clock."""
