"""One picture: its formats, its pixels as 8-bit RGB, its fit to a size, what is odd of it."""
