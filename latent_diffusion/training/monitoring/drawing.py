"""Draw sample pictures during training, from the parts alone; prompts are read as the pipeline reads them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image, ImageDraw, ImageFont

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.prompt_forms import PromptForms
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.diffusion.level import Sampler
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.errors import ConfigError
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.prompts.rewrite import read_as
from latent_diffusion.prompts.script import read_script
from latent_diffusion.prompts.states import Reading, Text, encode_texts
from latent_diffusion.runtime.precision import autocast
from latent_diffusion.samplers.dpmpp_2m import DPMpp2M
from latent_diffusion.training.losses.conditions import Scene, whole_picture, without_text
from latent_diffusion.training.objective import Share

__all__ = ["Drawing", "Sheet"]

COLUMNS = 8
LINES = 3  # of a prompt below its picture
AS_THE_PIPELINE = Reading(emphasis="a1111", long_prompt="chunk", clip_skip=None)


class SamplePrompts(Protocol):
    """What to draw: `SampleConfig`."""

    prompts: list[str]
    steps: int
    guidance_scale: float
    seed: int


@dataclass(frozen=True)
class Drawing:
    """The sampler of sample pictures and its spacing; None: karras, or trailing from a last level without signal."""

    sampler: Sampler = field(default_factory=DPMpp2M)
    spacing: str | None = None


class Sheet:
    """One sheet of size x size px pictures, a prompt each, in rows of eight; prompt k has seed `seed` + k.

    Attributes:
        keys: keys of `sample:` that an objective with such a sheet obeys.
    """

    keys = frozenset({"every", "prompts", "steps", "guidance_scale", "seed"})

    def __init__(
        self,
        parts: Components,
        wanted: SamplePrompts,
        size: int,
        precision: str,
        scenes: Sequence[Scene] = (),
        drawing: Drawing | None = None,
    ) -> None:
        """Read the prompts; `scenes` are the pictures with holes that an inpainting U-Net repaints, one a prompt.

        Raises:
            ConfigError: a prompt that plain text and weights do not express, such as "[a|b]".
        """
        self.parts, self.wanted, self.size, self.precision, self.scenes = parts, wanted, size, precision, scenes
        self.drawing = drawing or Drawing()
        self.texts = [_text(prompt, parts.prompt_forms, wanted.steps) for prompt in wanted.prompts]

    @torch.no_grad()
    def draw(self, share: Share) -> list[Image.Image]:
        """Return the pictures of a share of the prompts, as the weights are now."""
        parts, wanted = self.parts, self.wanted
        sampler = self.drawing.sampler
        last = parts.schedule.level(parts.schedule.num_train_timesteps - 1)
        spacing = self.drawing.spacing or ("karras" if last.alpha > 0 else "trailing")
        visited = levels(parts.schedule, spacing, wanted.steps, intervals=sampler.intervals)
        side = self.size // parts.autoencoder.factor
        like = parts.unet.conv_in.weight
        device = like.device
        training = parts.unet.training
        parts.unet.eval()
        pictures: list[Image.Image] = []
        seeds = self._seeds()
        for k in share.of(len(seeds)):
            seed, text, scene = seeds[k], self.texts[k], self.scenes[k] if self.scenes else None
            noise = NoiseSource([seed])
            x = noise.draw((parts.autoencoder.config.latent_channels, side, side)).to(device)
            prompt, empty = (
                whole_picture(parts, cond.to(device), self.size, scene)
                for cond in encode_texts(parts.text_encoder, [text, Text("")], AS_THE_PIPELINE)
            )
            if parts.zeros_for_empty_prompt:
                empty = without_text(empty)
            with autocast(self.precision, device):
                denoise = CFG(wanted.guidance_scale).bind(parts.denoiser(parts.unet, like.dtype), prompt, empty)
                for step in sampler(denoise, x, visited, noise):
                    x = step.x
            image = parts.autoencoder.to_images(x.to(next(parts.autoencoder.parameters()).dtype)).float().cpu()
            pictures += to_pil(image if scene is None else torch.where(scene.hole > 0, image, scene.image))
        parts.unet.train(training)
        return pictures

    def tiled(self, pictures: list[Image.Image]) -> Image.Image:
        """Return the sheet of all pictures; its `info` holds each one's prompt, seed, settings and place."""
        sheet, cells = _tiled(pictures, list(self.wanted.prompts), self.size)
        sheet.info["cells"] = json.dumps(cells)
        sheet.info["pictures"] = json.dumps(self._described(), ensure_ascii=False)
        return sheet

    def _described(self) -> list[dict[str, str | int | float]]:
        """Return how each picture was drawn, for the text of the PNG file."""
        settings = {"steps": self.wanted.steps, "guidance_scale": self.wanted.guidance_scale}
        pairs = zip(self.wanted.prompts, self._seeds(), strict=True)
        return [{"prompt": prompt, "seed": seed, **settings} for prompt, seed in pairs]

    def _seeds(self) -> list[int]:
        return [(self.wanted.seed + k) % 2**32 for k in range(len(self.texts))]


def _text(prompt: str, forms: PromptForms | None, steps: int) -> Text:
    """Return what the pipeline reads of a prompt, if that is one text for all steps."""
    script = read_script(read_as(prompt, forms) or prompt, None, steps, syntax=True, negative=False)
    texts = {key for terms in script.steps for key, _ in terms if isinstance(key, Text)}
    if script.tags or len(texts) > 1:
        raise ConfigError(
            f"sample.prompts: {prompt!r} has adapters, AND or parts that change from step to step; sample pictures are "
            f"drawn of plain texts with weights"
        )
    return texts.pop()


def _tiled(pictures: list[Image.Image], prompts: list[str], size: int) -> tuple[Image.Image, list[list[int]]]:
    """Return the pictures in rows, each above its prompt, which is cut to three lines; and each one's box in px."""
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    font = ImageFont.load_default(max(9, size // 24))
    line_height = round(font.getbbox("Ag")[3]) + 1
    height = size + LINES * line_height
    sheet = Image.new("RGB", (columns * size, rows * height), "white")
    pen, cells = ImageDraw.Draw(sheet), []
    for k, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = k % columns * size, k // columns * height
        for line, words in enumerate(_wrapped(prompt, font, size)[:LINES]):
            pen.text((x + 1, y + size + line * line_height), words, fill="black", font=font)
        sheet.paste(picture, (x, y))
        cells.append([x, y, x + size, y + size])
    return sheet, cells


def _wrapped(prompt: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in prompt.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) < width or not lines[-1] else [*lines, word]
    return lines
