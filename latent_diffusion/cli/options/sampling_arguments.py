"""The options that say how the noise is taken away: sampler and noise levels, each declared once."""

from typing import Annotated

import typer

from latent_diffusion.registry import names

__all__ = ["DiscardNextToLast", "Eta", "Numbers", "SamplerName", "Sigmas", "SpacingName", "SpacingRho", "Timesteps"]

OF_MODEL = "the model's"
SAMPLING = "Sampling"
SPACING_NAMES = (
    "leading, linspace, trailing, sgm_uniform, simple, beta, karras, exponential, polyexponential, beta_sigma, "
    "kl_optimal, ays or automatic"
)


class Numbers(tuple[float, ...]):
    """Numbers written with commas."""

    @classmethod
    def parse(cls, text: str) -> "Numbers":
        """Return the numbers of "999,500,0".

        Raises:
            typer.BadParameter: a part that is no number.
        """
        try:
            return cls(float(part) for part in text.split(","))
        except ValueError:
            raise typer.BadParameter(f"{text[:60]!r} is no list of numbers such as 999,600,200") from None


SamplerName = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME[:FIELD=VALUE,...]",
        help=f"{', '.join(names('latent_diffusion.samplers'))}; or a name as of A1111, such as 'DPM++ 2M Karras'.",
        show_default=OF_MODEL,
        rich_help_panel=SAMPLING,
    ),
]
SpacingName = Annotated[
    str | None,
    typer.Option(
        "--spacing",
        metavar="NAME",
        help=f"Which noise levels to visit: {SPACING_NAMES}.",
        show_default=OF_MODEL,
        rich_help_panel=SAMPLING,
    ),
]
SpacingRho = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Exponent of karras and polyexponential spacing.",
        show_default="7 and 1",
        rich_help_panel=SAMPLING,
    ),
]
DiscardNextToLast = Annotated[
    bool,
    typer.Option(
        "--discard-next-to-last",
        help="Divide the path into one step more and leave out the level before the last, as A1111 does for DPM2.",
        rich_help_panel=SAMPLING,
    ),
]
Timesteps = Annotated[
    Numbers | None,
    typer.Option(
        parser=Numbers.parse,
        metavar="T,T,...",
        help="Instead of steps and spacing: the training times to visit, falling, such as 999,850,600,300.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
Sigmas = Annotated[
    Numbers | None,
    typer.Option(
        parser=Numbers.parse,
        metavar="S,S,...",
        help="The same by noise level sigma / alpha, such as 14.6,3.9,0.9,0.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
Eta = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Share of the noise that ddim, ancestral and SDE samplers add at each step, 0 to 1.",
        show_default="the sampler's: 0 for ddim, 1 for others",
        rich_help_panel=SAMPLING,
    ),
]
