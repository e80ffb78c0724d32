"""The agent: sync, transfer, update machine, store, inference, outbox."""
