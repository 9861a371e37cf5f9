"""The training loop of stage fuse: batches, head and loss in chunks, FSDP2, checkpoints, ranks."""
