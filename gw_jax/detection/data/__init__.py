"""Images with objects: their files, their order and their batches."""
