"""The settings of the server and the limits of a request."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from latent_diffusion.errors import ConfigError

__all__ = [
    "MAX_BODY", "MAX_EVENTS", "MAX_IMAGES", "MAX_INPUT_PIXELS", "MAX_KEPT", "MAX_PIXELS", "MAX_STEPS", "ServeSettings",
]  # fmt: skip

MAX_BODY = 64 * 2**20  # bytes of a request
MAX_PIXELS = 2048 * 2048  # px of a picture that is drawn, and of the second pass
MAX_INPUT_PIXELS = 4096 * 4096  # px of a picture that is sent
MAX_STEPS = 200  # of one pass, repeats included
MAX_IMAGES = 32  # pictures of a request
MAX_KEPT = 256 * 2**20  # bytes of finished pictures that stay in memory; the oldest jobs are dropped first
MAX_EVENTS = 64  # streams of events that are open at once
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServeSettings:
    """How the server is started; see `latent-diffusion serve --help`."""

    model: str = "emoji"
    host: str = "127.0.0.1"
    port: int = 7860
    api_key: str | None = None
    cors: tuple[str, ...] = ()  # origins of other pages that may call
    queue: int = 64  # most jobs that wait
    lora_folder: Path | None = None
    model_folder: Path | None = None
    output: Path | None = None  # where finished pictures are written
    train_folder: Path | None = None  # pictures to train on, and the runs

    def __post_init__(self) -> None:
        if self.api_key is not None and (len(self.api_key) < 8 or not self.api_key.isascii()):
            raise ConfigError("--api-key: use at least 8 ASCII characters")
        if not self.api_key and not self.local:
            raise ConfigError(
                f"--host {self.host}: other machines can reach this address; give --api-key too, or use 127.0.0.1"
            )
        if "*" in self.cors and not self.api_key:
            raise ConfigError("--cors '*': every page could draw here; give --api-key too, or name the origins")
        given = {
            "--lora-folder": self.lora_folder,
            "--model-folder": self.model_folder,
            "--train-folder": self.train_folder,
        }
        for name, folder in given.items():
            if folder is not None and not folder.is_dir():
                raise ConfigError(f"{name} {str(folder)!r}: there is no such folder")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def names(self) -> frozenset[str]:
        """The host names under which requests are accepted where there is no key."""
        return frozenset({*LOCAL, self.host.lower()})
