"""Speed has one home: precision, threads, allocator."""
