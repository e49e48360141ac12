"""Training from the page: one process of its own at a time, started, watched and stopped over HTTP."""
