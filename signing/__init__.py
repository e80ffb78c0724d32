"""Trust: keys and signers, the repositories' publish side, the trust store, durable writes, the release manager's tool."""
