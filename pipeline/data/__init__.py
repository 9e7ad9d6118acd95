"""Images to batches: order, augmentation, loading."""
