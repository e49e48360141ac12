"""A model placed on a device, with its active adapters."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.mask_channels import model_adapter
from latent_diffusion.adapters.stack import Stack
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.trained_times import check_times
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.level import Level
from latent_diffusion.errors import CheckpointError, ConfigError, warn
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.options.model import MachineOptions
from latent_diffusion.options.option import check_names
from latent_diffusion.pipeline.call.seeds import open_noise
from latent_diffusion.pipeline.call.settings import Defaults, Settings, check_cost
from latent_diffusion.pipeline.engine.guides import Guides
from latent_diffusion.pipeline.engine.job import Job
from latent_diffusion.pipeline.engine.lora_folder import check_folder, with_tags
from latent_diffusion.pipeline.engine.machine import Machine
from latent_diffusion.pipeline.engine.prompts import read_prompts
from latent_diffusion.pipeline.engine.refine import read_refiner
from latent_diffusion.prompts.terms import AdapterTag
from latent_diffusion.runtime.cpu.packed_layers import unpacked_copy
from latent_diffusion.runtime.working_autoencoder import WorkingAutoencoder

__all__ = ["Engine"]


@dataclass(frozen=True)
class Engine:
    """A model placed on a device, with its active adapters. Immutable; a change of adapters makes a new engine."""

    components: Components
    machine: Machine
    defaults: Defaults
    adapters: Stack = field(default_factory=Stack)  # what `components` were changed by
    base: Components | None = None  # the parts before that; None = there are no adapters

    @classmethod
    def build(cls, components: Components, options: MachineOptions, *, keep: bool = True) -> "Engine":
        """Place the parts on the device and in the formats of `options`.

        Args:
            components: the parts; their tensors are themselves moved.
            options: see `MachineOptions`.
            keep: leave the modules of `components` as they are, for the caller to go on with; if not, packed weights
                replace theirs, and so never lie in memory twice.

        Raises:
            ConfigError: an unknown name or value.
            ResourceError: a device or an attention kernel that is not to be had.
        """
        if keep:
            unet, autoencoder = components.unet, components.autoencoder  # of another pipeline, they may be packed
            components = replace(components, unet=unpacked_copy(unet), autoencoder=unpacked_copy(autoencoder))
        machine = Machine.choose(components, options)
        return cls(machine.place(components), machine, Defaults.of(components))

    @property
    def device(self) -> torch.device:
        """Device on which the parts compute."""
        return self.machine.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format in which the U-Net computes."""
        return self.machine.dtype

    @property
    def without_adapters(self) -> Components:
        """The parts without any adapter."""
        return self.components if self.base is None else self.base

    def with_adapters(self, adapters: Stack) -> "Engine":
        """Return an engine that draws with these adapters and no others; this one stays as it is.

        Raises:
            ConfigError: a learned word that the vocabulary already has, or two inpainting adapters.
        """
        base = self.without_adapters
        changed = adapters.apply(base)
        self.machine.speed_up(changed.unet)  # the layers that an adapter changed; the others are shared
        return replace(self, components=changed, adapters=adapters, base=base)

    @cached_property
    def repainting(self) -> "Engine":
        """The engine that `inpaint` draws with: this one, with the inpainting adapter of the model's folder, if any.

        A U-Net that reads a mask already, by itself or by an adapter, is taken as it is.

        Raises:
            CheckpointError: the file is damaged, or no inpainting adapter for this model.
        """
        file = None if self.components.for_inpainting else model_adapter(self.without_adapters)
        if file is None:
            return self
        own = read_lora(file, self.without_adapters)
        if not own.report.inpainting:
            raise CheckpointError(
                f"{file}: is no inpainting adapter, since it has no whole change of the U-Net's first convolution; "
                "move it out of the model's folder, or turn inpainting_adapter off"
            )
        return self.with_adapters(replace(self.adapters, own=own))

    def saved(self) -> Components:
        """Return the parts of a saved model: with fused adapters, without active ones."""
        left = [f"adapter {name!r}" for name in self.adapters.active]
        left += [f"learned word {word.token!r}" for word in self.adapters.words]
        if left:
            message = f"not saved with the model: {', '.join(left)}; fuse_lora makes an adapter part of it"
            warn(message)
        return self.adapters.only_fused().apply(self.without_adapters)

    def plain(self) -> "Engine":
        """Return an engine whose weights are plain parameters in the order of the checkpoint, without speed-ups."""
        unet, autoencoder = (unpacked_copy(part) for part in (self.components.unet, self.components.autoencoder))
        if isinstance(autoencoder, WorkingAutoencoder):
            autoencoder.before_encoding = None
        changed = replace(self.components, unet=unet, autoencoder=autoencoder)
        return replace(self, components=changed, machine=replace(self.machine, fast=False))

    def settings(self, options: Options) -> Settings:
        """Return the checked settings of a call.

        Raises:
            ConfigError: an unknown name, or a value that cannot be.
        """
        check_names(Options, options)
        guides = Guides(self.components, self.machine, self.denoiser)
        return Settings.resolve(self.components, self.defaults, options, guides)

    def denoiser(self, components: Components | None = None) -> Denoiser:
        """Return the U-Net of `components`, or its own, as an estimator of x0 on the device."""
        parts = self.components if components is None else components
        return parts.denoiser(self.machine.at_work(parts.unet), self.dtype)

    def start(
        self,
        prompt: Texts,
        settings: Settings,
        options: Options,
        *,
        levels: Sequence[Level] | None = None,
        initial: str = "seed",
    ) -> Job:
        """Encode the prompts and open the noise streams of one call.

        Args:
            prompt: one text or several; None with `prompt_embeds`.
            settings: what `settings` returned.
            options: the call's.
            levels: the levels that the sampler visits; None = the whole path.
            initial: source of the initial noise: "seed", or "latents" if the caller gave it.

        Raises:
            ConfigError: prompts or seeds that cannot be.
        """
        levels = settings.levels(self.components) if levels is None else levels
        check_cost(prompt, settings, options, max(len(levels) - 1, 1))
        folder = options.get("lora_folder")
        adapt = partial(self.with_prompt_adapters, folder=None if folder is None else check_folder(folder))
        prompts = read_prompts(adapt, prompt, options, settings, max(len(levels) - 1, 1))
        for parts in {id(group.components): group.components for group in prompts.groups}.values():
            check_times(parts, levels)
        self.machine.after_encoding(self.components)
        noise, seeds, variation = open_noise(options, len(prompts))
        if options.get("generator") is not None and initial == "seed":
            initial = "generator"
        job = Job(self.components, self.machine, settings, levels, prompts, noise, seeds, initial, variation)
        second = read_refiner(self.components, settings, levels, prompt, options)
        if second is None:
            return job
        components, machine, settings = second.components, second.machine, second.settings
        refiner = replace(job, components=components, machine=machine, settings=settings, prompts=second.prompts)
        return replace(job, refiner=refiner, refined_below=second.below)

    def with_prompt_adapters(
        self, tags: tuple[AdapterTag, ...], folder: str | os.PathLike[str] | None = None
    ) -> Components:
        """Return the parts with the adapters that a prompt names, in addition to the active ones.

        Raises:
            ConfigError: an adapter that is neither loaded nor in the folder, or one for inpainting.
            CheckpointError: one that does not fit this model.
        """
        if not tags:
            return self.components
        changed = self.with_adapters(with_tags(self.adapters, tags, folder, self.without_adapters)).components
        if changed.repaints_by != self.components.repaints_by:
            name = changed.repaints_by or self.components.repaints_by
            raise ConfigError(
                f"prompt: the adapter {name!r} is for inpainting, which a prompt does not choose; load it for the "
                "call (--lora, load_lora_weights) and leave its tag out"
            )
        return changed
