"""One step of training on the core alone: noise the latents, ask the network, weigh the error, step.

    python examples/train_step.py

The objectives of the trainer do the same, with data, keyed randomness and resuming around it.
"""

import torch

from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.models.unet import UNet


def train_step(
    unet: UNet, loss: DiffusionLoss, optimizer: torch.optim.Optimizer, x0: torch.Tensor, states: Conditioning
) -> float:
    """Take one step on latents `x0` (B, C, h, w) with their text states (B rows); return the loss before it."""
    times = torch.randint(0, loss.schedule.num_train_timesteps, (len(x0),))
    noise = torch.randn_like(x0)
    error = loss(lambda x, t: unet(x, t, unet.project(states)), x0, times, noise).mean()
    optimizer.zero_grad()
    error.backward()
    optimizer.step()
    return error.item()


if __name__ == "__main__":
    model = load_model("emoji")
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=1e-4)
    loss = DiffusionLoss(model.schedule, model.prediction, weighting="min_snr")
    with torch.no_grad():
        states = model.text_encoder(["Red apple, flat style emoji"] * 4)
    for step in range(3):
        print(step, f"{train_step(model.unet, loss, optimizer, torch.randn(4, 4, 16, 16), states):.4f}")
