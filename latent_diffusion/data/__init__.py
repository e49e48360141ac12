"""Pictures and captions: reading, choosing, batching."""
