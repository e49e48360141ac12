"""Players of processes on samples of any shape, which need no model around them."""
