"""How many steps a strength leaves, against diffusers' own count."""

import pytest

from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.call.settings import steps_after_strength


@pytest.mark.parametrize("steps", [20, 25, 30, 50, 100])
def test_as_many_steps_as_diffusers(steps):
    """Image to image of diffusers 0.42.1 for every strength of two decimals; 100 at 0.29 and 50 at 0.58 are 28."""
    from types import SimpleNamespace

    from diffusers import StableDiffusionImg2ImgPipeline

    scheduler = SimpleNamespace(order=1, timesteps=list(range(steps)))
    theirs = SimpleNamespace(scheduler=scheduler)
    for hundredths in range(100 // steps, 101):
        strength = hundredths / 100
        _, wanted = StableDiffusionImg2ImgPipeline.get_timesteps(theirs, steps, strength, "cpu")
        if wanted:
            assert steps_after_strength(steps, strength) == wanted
    assert (steps_after_strength(100, 0.29), steps_after_strength(50, 0.58)) == (28, 28)


@pytest.mark.parametrize("steps", [3, 7, 50, 999])
def test_the_least_strength_of_the_message_is_enough(steps):
    with pytest.raises(ConfigError, match="less than one step") as caught:
        steps_after_strength(steps, 1e-6)
    least = float(str(caught.value).split("use at least ")[1].split(",")[0])
    assert steps_after_strength(steps, least) == 1
