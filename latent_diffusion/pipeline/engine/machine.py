"""Where and how a pipeline computes: device, number formats, kernels, and options that save memory.

None of it decides a picture, beyond rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checks import check_flag
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import warn
from latent_diffusion.models.unet import UNet
from latent_diffusion.options.model import MachineOptions
from latent_diffusion.options.option import check_names
from latent_diffusion.runtime.attention_kernels import check_backend, describe_auto, set_kernel
from latent_diffusion.runtime.cpu.pages import give_back
from latent_diffusion.runtime.cuda.device_noise import on_device
from latent_diffusion.runtime.cuda.exact import exact_float32
from latent_diffusion.runtime.cuda.graphs import GraphedUNet, Graphs
from latent_diffusion.runtime.placement import choose_device, choose_dtype
from latent_diffusion.runtime.residency import moved, offloaded_text
from latent_diffusion.runtime.speedup import recordings, speed_up
from latent_diffusion.runtime.working_autoencoder import Tiling, WorkingAutoencoder, check_tiling

__all__ = ["Machine", "unet_dtype"]


@dataclass(frozen=True)
class Machine:
    """The choices, checked; names are those of `MachineOptions`."""

    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    attention: str
    tiling: Tiling
    offload: bool
    fast: bool
    graphs: Graphs | None = field(default=None, compare=False, repr=False)  # where forward passes are recorded

    @classmethod
    def choose(cls, components: Components, options: MachineOptions) -> "Machine":
        """Check the options and complete them for this model.

        Raises:
            ConfigError: an unknown name or value.
            ResourceError: a device that is not here.
        """
        check_names(MachineOptions, options)
        device, vae = choose_device(options.get("device")), options.get("vae_dtype", "auto")
        weights = sum(p.numel() for p in components.unet.parameters())
        offload, fast = options.get("offload", False), options.get("fast", True)
        for name, value in (("offload", offload), ("fast", fast)):
            check_flag(name, value)
        if offload and device.type == "cpu":
            warn("offload has no meaning on a CPU and is ignored")
        return cls(
            device=device,
            dtype=choose_dtype(options.get("dtype", "auto"), device, weights),
            vae_dtype=torch.float32 if vae == "auto" else choose_dtype(vae, device, 0),
            attention=check_backend(options.get("attention", "auto")),
            tiling=check_tiling(options.get("tiling", "auto")),
            offload=offload and device.type != "cpu",
            fast=fast,
            graphs=recordings(device) if fast and not offload else None,
        )

    @property
    def kernel(self) -> str:
        """Name of the U-Net's attention kernel; for "auto" also the kernel that was chosen."""
        if self.attention != "auto":
            return self.attention
        return f"auto: {describe_auto(self.device, self.dtype, fast=self.fast)}"

    def place(self, components: Components) -> Components:
        """Return the parts in their formats, on their devices, with their kernels.

        The modules given are themselves moved and changed for speed.

        Raises:
            ResourceError: the attention kernel does not work here.
        """
        if self.device.type == "cuda":
            exact_float32()
        home = torch.device("cpu") if self.offload else self.device
        text = components.text_encoder.to(home).eval()
        autoencoder = components.autoencoder
        self._moved(autoencoder, self.vae_dtype)
        for part in (autoencoder.decoder, autoencoder.post_quant_conv):
            self.speed_up(part)
        return replace(
            components,
            unet=self.place_unet(components.unet),
            autoencoder=WorkingAutoencoder(
                autoencoder,
                device=self.device,
                tiling=self.tiling,
                offload=self.offload,
                graphs=self.graphs,
                before_encoding=self.speed_up,
            ).eval(),
            text_encoder=offloaded_text(text, self.device) if self.offload else text,
        )

    def place_unet(self, unet: UNet) -> UNet:
        """Return the U-Net on its device; the given one is itself moved.

        Raises:
            ResourceError: the attention kernel does not work here.
        """
        self._moved(unet, self.dtype)
        self.speed_up(unet)
        return unet

    def speed_up(self, module: nn.Module) -> None:
        """Rearrange the weights of `module` for speed where that is wanted and not done yet, in place."""
        if self.fast and not self.offload:
            speed_up(module, self.device)

    def _moved(self, module: nn.Module, dtype: torch.dtype) -> None:
        module.to(device=torch.device("cpu") if self.offload else self.device, dtype=dtype).eval()
        set_kernel(module, self.attention, self.device, dtype, fast=self.fast)

    def noise(self, source: NoiseSource) -> NoiseSource:
        """Return the same streams with their draws on the device, made ahead where it is a GPU."""
        return on_device(source, self.device)

    def after_encoding(self, components: Components) -> None:
        """Release memory that only the text encoder needs, after the prompts of a call are encoded."""
        give_back(components.text_encoder)

    def at_work(self, unet: UNet) -> UNet:
        """Return the U-Net on the device, for as long as the caller holds it."""
        if self.offload:
            return moved(unet, self.device)
        return GraphedUNet(unet, self.graphs) if self.fast and self.graphs is not None else unet


def unet_dtype(options: MachineOptions) -> Callable[[int], torch.dtype]:
    """Return what chooses the U-Net's dtype by the number of its weights, so that it is cast while it is read.

    Raises:
        ConfigError: an unknown name or value.
        ResourceError: a device that is not here.
    """
    device, dtype = choose_device(options.get("device")), options.get("dtype", "auto")
    return lambda weights: choose_dtype(dtype, device, weights)
