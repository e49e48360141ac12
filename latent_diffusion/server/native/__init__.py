"""The API of this server that its page uses."""
