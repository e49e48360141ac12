"""A model placed on a device, and one call of it."""
