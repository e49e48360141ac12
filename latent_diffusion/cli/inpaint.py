"""`latent-diffusion inpaint`: repaint a part of a picture."""

import os
from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.arguments import (
    ClipSkip,
    Device,
    Dtype,
    Eta,
    GuidanceScale,
    Height,
    Model,
    NegativePrompt,
    NumImages,
    Output,
    SamplerName,
    Seed,
    SpacingName,
    Steps,
    Width,
)

__all__ = ["inpaint"]

REPAINTING = "Repainting"
MOST_STEPS = 10**6  # that the bar counts; the pipeline refuses far fewer


def inpaint(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the repainted part shows.", show_default=False)],
    image: Annotated[Path, typer.Option("--image", "-i", metavar="FILE", help="The picture.", show_default=False)],
    mask: Annotated[
        Path,
        typer.Option(
            "--mask", metavar="FILE", help="Its mask, of the same size: white is repainted.", show_default=False
        ),
    ],
    model: Model = "emoji",
    negative_prompt: NegativePrompt = None,
    output: Output = None,
    strength: Annotated[
        float, typer.Option(metavar="X", help="0 leaves it as it is, 1 paints anew.", rich_help_panel=REPAINTING)
    ] = 1.0,
    masked_content: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What stands in the hole at first: original, fill, noise or nothing.",
            rich_help_panel=REPAINTING,
        ),
    ] = "original",
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="noise or noised_image.",
            show_default="noised_image for original and fill",
            rich_help_panel=REPAINTING,
        ),
    ] = None,
    padding: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Px around the mask that the model sees.",
            show_default="a quarter of the mask",
            rich_help_panel=REPAINTING,
        ),
    ] = None,
    feather: Annotated[
        int,
        typer.Option(
            metavar="PX", help="Px inside the mask's edge over which old turns into new.", rich_help_panel=REPAINTING
        ),
    ] = 2,
    num_images: NumImages = 1,
    seed: Seed = None,
    height: Height = None,
    width: Width = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    sampler: SamplerName = None,
    spacing: SpacingName = None,
    eta: Eta = 0.0,
    clip_skip: ClipSkip = None,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Repaint the white part of a mask.

    Every pixel outside the mask stays exactly what it was; the picture keeps its size. Height and width are those the
    model works at, not the picture's.

    **Examples**

    `latent-diffusion inpaint "a red apple" --image table.png --mask hole.png`

    `latent-diffusion inpaint "a hat" -i portrait.jpg --mask head.png --masked-content fill --strength 0.8`
    """
    from latent_diffusion.cli.output import LOSSY, names_a_file, plan_files
    from latent_diffusion.cli.progress import progress
    from latent_diffusion.cli.run import load_pipeline, seed_or_draw, write_pictures
    from latent_diffusion.errors import DataError

    for name, file in (("--image", image), ("--mask", mask)):
        if not os.path.isfile(file):
            raise DataError(f"{name} {str(file)!r}: there is no such file")
    seed = seed_or_draw(seed, num_images)
    files = plan_files(output, seed, num_images)
    if files[0].suffix.lower() in LOSSY:
        typer.echo(f"warning: {files[0].suffix} loses detail everywhere; write .png to keep every pixel", err=True)
    pipe = load_pipeline(model, device, dtype)
    from latent_diffusion.pipeline.settings import steps_after_strength

    run = steps_after_strength(min(steps or pipe.defaults.num_inference_steps, MOST_STEPS), strength)
    with progress("Repainting", run) as on_step:
        out = pipe.inpaint(
            prompt,
            image=image,
            mask_image=mask,
            strength=strength,
            masked_content=masked_content,
            start_from=start_from,
            padding_mask_crop=padding,
            feather=feather,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_images_per_prompt=num_images,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            spacing=spacing,
            eta=eta,
            clip_skip=clip_skip,
            seed=seed,
            on_step=on_step,
        )
    write_pictures(out, files, named=names_a_file(output))
