"""The socket that the server listens on."""

import contextlib
import socket
from collections.abc import Iterator

from latent_diffusion.errors import ResourceError

__all__ = ["listen"]


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """Yield a socket bound to the address and the URL of the page; it is closed after the block.

    Raises:
        ResourceError: the address or the port cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ResourceError(f"--host {host}: cannot be listened on: {error.strerror or error}") from error
    with contextlib.closing(bound):
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            why = error.strerror or error
            raise ResourceError(f"--port {port}: cannot be listened on: {why}; choose another with --port") from error
        name = f"[{host}]" if ":" in host else host
        yield bound, f"http://{name}:{bound.getsockname()[1]}/"
