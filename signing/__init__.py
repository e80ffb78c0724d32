"""Trust: keys, signers, the repositories' publish side, the trust store, durable writes, the manager's tool."""
