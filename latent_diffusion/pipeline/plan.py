"""A call that makes a picture again, with the fields that it cannot follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from latent_diffusion.checkpoint.components import Applied, Components
from latent_diffusion.data.pictures.images import ImageSource
from latent_diffusion.diffusion.level import Step
from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.pipeline.engine.output import Output
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.provenance.record import RefinerRecord

__all__ = ["Plan"]

NEEDS_INPUT = {"inpaint": ("image", "mask_image"), "outpaint": ("image",), "image_to_image": ("image",)}
OF_SDXL = ("prompt_2", "original_size", "crops_coords_top_left", "target_size")


@dataclass(frozen=True)
class Plan:
    """A call that makes a picture again."""

    method: str  # of the pipeline; "__call__" for text to image
    prompt: str
    arguments: Mapping[str, Any]
    model: str | None  # its name, for people
    model_hash: str | None  # or the beginning of it
    dtype: str | None
    loading: Mapping[str, Any] = field(default_factory=dict)  # what else `from_pretrained` was told, by name
    adapters: tuple[Applied, ...] = ()  # to be loaded, besides those that the prompt asks for
    missing: tuple[str, ...] = ()  # what is known not to be honoured
    steps: int | None = None  # after which the caller stopped
    refiner: str | None = None  # name of the model that drew the end of the path, to be given to `draw`
    refined_below: float = 0.0  # training time at which it took over
    refined_by: RefinerRecord | None = None
    refined_after: int | None = None  # or the steps after which it did, where another tool counts them
    lora_hashes: Mapping[str, str] = field(default_factory=dict)  # of the adapters that the prompt asks for, by name
    vae: str | None = None  # name of the autoencoder, where it was not the model's own
    tool: str | None = None  # that made the picture; None = this package
    for_model: bool = False  # whether it is `fitted` to one

    @property
    def inputs(self) -> tuple[str, ...]:
        """Pictures that the call needs: "image", "mask_image"."""
        return tuple(name for name in NEEDS_INPUT.get(self.method, ()) if name not in self.optional_inputs)

    @property
    def optional_inputs(self) -> tuple[str, ...]:
        """Pictures that the call takes or does without: the transparency of a picture may be its own mask."""
        return ("mask_image",) if self.arguments.get("mask_channel") == "alpha" else ()

    def fitted(self, components: Components) -> "Plan":
        """Return the plan for a model: what its family does not read is left out, as the tool does, or named."""
        if self.tool is None or self.for_model:
            return self
        arguments, missing = dict(self.arguments), list(self.missing)
        for name in [name for name in arguments if name.removeprefix("negative_") in OF_SDXL]:
            if not components.size_count:
                missing.append(f"{name.replace('_', ' ')}: {arguments.pop(name)}; this model is not SDXL")
        if "clip_skip" in arguments and components.open_clip:
            skipped = arguments.pop("clip_skip")
            if self.tool != "A1111" and skipped > 1:  # A1111 reads it for Stable Diffusion 1 alone
                arguments["clip_skip"] = skipped - 1  # these models leave the last layer out anyway
        return replace(self, arguments=arguments, missing=tuple(missing), for_model=True)

    def draw(
        self,
        pipe: LatentDiffusionPipeline,
        pictures: Mapping[str, ImageSource],
        refiner: LatentDiffusionPipeline | None = None,
        **options: Any,
    ) -> Output:
        """Make the picture again, by the plan as it is `fitted` to the model.

        Args:
            pipe: the model, with the adapters loaded.
            pictures: one for each of `inputs`.
            refiner: the second model; None leaves the end of the path to the first.
            **options: of the pipeline, such as `on_step` and `lora_folder`.

        Raises:
            ConfigError: an input is missing or not needed, or an argument that this model or version does not take.
        """
        fitted = self.fitted(pipe.components)
        for line in fitted.missing[len(self.missing) :]:
            warn(f"not honoured: {line}")
        arguments = {**fitted.arguments, **({} if refiner is None else self._refining(pipe, refiner))}
        if pipe.components.prompt_forms is None:
            arguments.pop("rewrite", None)  # another model than it was made with
        for name in {*self.inputs, *pictures} - {*self.optional_inputs}:
            if (name in pictures) != (name in self.inputs):
                need = "needs" if name in self.inputs else "has no use for"
                raise ConfigError(f"this picture {need} `{name}`: it was made by {self.method.strip('_')}")
        seen = options.pop("on_step", None)

        def on_step(step: Step) -> bool | None:
            wanted = seen(step) if seen else None
            return False if self.steps is not None and step.index + 1 >= self.steps else wanted

        method: Any = getattr(pipe, self.method)
        return method(self.prompt, **pictures, **arguments, **options, on_step=on_step)

    def _refining(self, pipe: LatentDiffusionPipeline, refiner: LatentDiffusionPipeline) -> dict[str, Any]:
        """Return the arguments that belong to the refiner."""
        if self.refiner is None:
            raise ConfigError("this picture was drawn by one model; leave the refiner out")
        below = self.refined_below if self.refined_after is None else self._time_after(pipe, self.refined_after)
        switch = 1 - below / pipe.components.schedule.num_train_timesteps
        told = self.refined_by
        scores = {} if told is None else {"": told.size_ids, "negative_": told.negative_size_ids}
        read = {f"{side}aesthetic_score": ids[4] for side, ids in scores.items() if ids is not None and len(ids) == 5}
        return {"refiner": refiner, "refiner_switch": switch, **read}

    def _time_after(self, pipe: LatentDiffusionPipeline, steps: int) -> float:
        """Return the training time below which a path is when `steps` of its steps are done."""
        names = ("num_inference_steps", "sampler", "spacing")
        settings = pipe.engine.settings({name: self.arguments[name] for name in names if name in self.arguments})  # pyright: ignore[reportArgumentType]
        levels = settings.levels(pipe.components)
        return float(int(levels[min(steps, len(levels) - 1)].t) + 1)
