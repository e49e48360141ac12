"""The HTTP server and its page: one process, one queue, one model at a time."""
