"""The options of the commands that repaint a part of a picture, declared once."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from latent_diffusion.cli.options.drawing import Drawing

__all__ = ["ExactSteps", "Repainting", "steps_run"]

PANEL = "Repainting"
MOST_STEPS = 10**6  # that the bar counts; the pipeline refuses far fewer

ExactSteps = Annotated[
    bool,
    typer.Option("--exact-steps", help="Run all of --steps at any strength.", rich_help_panel="Sampling"),
]
OF_PIPELINE = {"padding": "padding_mask_crop"}


@dataclass(frozen=True)
class Repainting(Drawing):
    """What `inpaint` and `outpaint` take."""

    strength: Annotated[
        float, typer.Option(metavar="X", help="0 leaves it as it is, 1 paints anew.", rich_help_panel=PANEL)
    ] = 1.0
    exact_steps: ExactSteps = False
    masked_content: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What stands in the hole at first: original, fill, noise or nothing.",
            show_default="original; fill beyond the edges",
            rich_help_panel=PANEL,
        ),
    ] = None
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="noise or noised_image.",
            show_default="noised_image for original and fill",
            rich_help_panel=PANEL,
        ),
    ] = None
    inpaint_area: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What the model sees: auto, masked (only the mask and --padding, at its full size) or whole.",
            rich_help_panel=PANEL,
        ),
    ] = "auto"
    padding: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Px around the mask that the model sees.",
            show_default="a quarter of the mask",
            rich_help_panel=PANEL,
        ),
    ] = None
    feather: Annotated[
        int,
        typer.Option(metavar="PX", help="Px inside the mask's edge over which old turns into new.",
                     rich_help_panel=PANEL),
    ] = 2  # fmt: skip
    resample: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Walk each stretch of steps N times more, so that old and new agree better.",
            rich_help_panel=PANEL,
        ),
    ] = 0
    jump_length: Annotated[int, typer.Option(metavar="N", help="Steps of such a stretch.", rich_help_panel=PANEL)] = 10
    color_match: Annotated[
        bool,
        typer.Option("--color-match", help="Give the new part the colours around it.", rich_help_panel=PANEL),
    ] = False
    latent_blend: Annotated[
        bool,
        typer.Option(
            "--latent-blend/--no-latent-blend",
            help="Keep the rest in latent space too; only inpainting models can do without.",
            rich_help_panel=PANEL,
        ),
    ] = True

    def options(self) -> dict[str, Any]:
        """Return what the pipeline's repainting methods take of it, under their names."""
        values = {OF_PIPELINE.get(name, name): value for name, value in super().options().items()}
        return {name: value for name, value in values.items() if name != "masked_content" or value is not None}

    def steps_run(self, steps: int) -> int:
        """Return how many of `steps` the bar counts."""
        return steps_run(steps, self.strength, exact=self.exact_steps, resample=self.resample)


def steps_run(steps: int, strength: float, *, exact: bool, resample: int = 0) -> int:
    """Return how many steps the bar counts.

    Raises:
        ConfigError: strength outside [0, 1], or less than one step.
    """
    from latent_diffusion.pipeline.call.settings import steps_after_strength

    most = min(steps, MOST_STEPS)
    return (most if exact else steps_after_strength(most, strength)) * (1 + max(resample, 0))
