"""OpenAI's HTTP API for images, `/v1/images`, as a translation onto the native request."""
