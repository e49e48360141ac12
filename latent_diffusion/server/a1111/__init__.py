"""The HTTP API of the A1111 web UI, `/sdapi/v1`, as a translation onto the native request."""
