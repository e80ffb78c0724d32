"""Results on their way: durable rows, signed batches, receipts."""
