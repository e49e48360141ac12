"""The autoencoder as a pipeline uses it: whole or in bands, on the device while it works, never a black picture.

float16 ends at 65504, and decoders of published models go beyond it for some latents; the overflow becomes NaN, and NaN
becomes black. So a picture that float16 cannot decode is decoded once more in float32, with a warning.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.models.autoencoder import AutoencoderKL, Posterior
from latent_diffusion.runtime.cpu.allocator import give_back_free
from latent_diffusion.runtime.cuda.graphs import Graphs, decoded
from latent_diffusion.runtime.memory import decoding_bytes, fits, pictures_at_once
from latent_diffusion.runtime.residency import moved
from latent_diffusion.runtime.tiling import TiledAutoencoder

__all__ = ["TILINGS", "Tiling", "WorkingAutoencoder", "check_tiling"]

Tiling = bool | str
"""True = in bands of rows, False = whole, "auto" = in bands where the whole does not fit into half the free memory."""

TILINGS = (True, False, "auto")

_READY = threading.Lock()


class WorkingAutoencoder(AutoencoderKL):
    """The same modules, weights and methods as the autoencoder it is made of; takes tensors from any device."""

    def __init__(
        self,
        model: AutoencoderKL,
        *,
        device: torch.device,
        tiling: Tiling,
        offload: bool,
        graphs: Graphs | None = None,
        before_encoding: Callable[[nn.Module], None] | None = None,
    ) -> None:
        """Share the modules of `model`.

        Args:
            model: in the dtype it computes in; on `device`, or on the host when `offload`.
            device: where it computes, and where results are.
            tiling: see `Tiling`.
            offload: copy the weights to `device` for each piece of work only.
            graphs: where whole decodings are recorded, to be replayed.
            before_encoding: what is done once to the modules of the encoder, in place, before the first picture is
                encoded; most calls never need them.
        """
        nn.Module.__init__(self)
        self.config = model.config
        self.encoder, self.decoder = model.encoder, model.decoder
        self.quant_conv, self.post_quant_conv = model.quant_conv, model.post_quant_conv
        self.computes_on, self.tiling, self.offload = device, check_tiling(tiling), offload
        self.graphs, self.before_encoding = graphs, before_encoding
        self.has_decoded = False
        self.train(model.training)

    def encode(self, images: Tensor) -> Posterior:
        """Return the posterior over z of `images` (B, 3, H, W), on the device; half precision that overflows, again."""
        self._make_encoder_ready()
        images = images.to(self.computes_on)
        tiled = self._tiled(images.shape[-2] * images.shape[-1])
        posterior = _encode(self._there(), images, tiled)
        if _overflowed(images.dtype, posterior.mean):
            _say_again("encoder", images.dtype)
            posterior = _encode(self._there(torch.float32), images.float(), tiled)
        return posterior

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W) of `z` (B, C, h, w), on the device; half precision that overflows, again."""
        if not self.has_decoded:  # weights came and went, and the first picture needs other memory than its steps
            self.has_decoded = True
            give_back_free()
        z = z.to(self.computes_on)
        pixels = z.shape[-2] * z.shape[-1] * self.factor**2
        tiled, at_once = self._tiled(pixels), pictures_at_once(decoding_bytes(self.config, pixels), self.computes_on)
        images = _decode(self._there(), z, tiled, at_once, self.graphs)
        bad = ~images.isfinite().flatten(1).all(1)
        if bad.any() and _overflowed(z.dtype, images) and z.isfinite().all():
            _say_again("decoder", z.dtype)
            images = images.float()
            images[bad] = _decode(self._there(torch.float32), z[bad].float(), tiled, at_once)
        return images

    def _make_encoder_ready(self) -> None:
        with _READY:  # no thread encodes while it changes
            if self.before_encoding is not None:
                for part in (self.encoder, self.quant_conv):
                    self.before_encoding(part)
            self.before_encoding = None

    def _there(self, dtype: torch.dtype | None = None) -> AutoencoderKL:
        """Return the weights on the device, in `dtype` where given."""
        return moved(self, self.computes_on, dtype) if self.offload or dtype is not None else self

    def _tiled(self, pixels: int) -> bool:
        if self.tiling != "auto":
            return bool(self.tiling)
        return not fits(decoding_bytes(self.config, pixels), self.computes_on)


def check_tiling(tiling: Tiling) -> Tiling:
    """Return `tiling` where it is one of `TILINGS`.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(tiling, bool) and tiling != "auto":
        raise ConfigError(f"tiling {tiling!r}: use True, False or 'auto'")
    return tiling


def _encode(model: AutoencoderKL, images: Tensor, tiled: bool) -> Posterior:
    return TiledAutoencoder(model).encode(images) if tiled else AutoencoderKL.encode(model, images)


def _decode(model: AutoencoderKL, z: Tensor, tiled: bool, at_once: int, graphs: Graphs | None = None) -> Tensor:
    if tiled:
        return TiledAutoencoder(model).decode(z)
    if graphs is not None:
        return torch.cat([decoded(graphs, model, part) for part in z.split(at_once)])
    return torch.cat([AutoencoderKL.decode(model, part) for part in z.split(at_once)])


def _overflowed(dtype: torch.dtype, result: Tensor) -> bool:
    return dtype in (torch.float16, torch.bfloat16) and not bool(result.isfinite().all())


def _say_again(what: str, dtype: torch.dtype) -> None:
    warn(
        f"the {what} overflowed in {str(dtype).removeprefix('torch.')}; it is run again in float32 "
        "(vae_dtype 'float32' avoids the first attempt)"
    )
