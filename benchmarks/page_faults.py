"""Measure what two settings of memory save, as counts of pages: they do not depend on the load of the machine.

    python -m benchmarks.page_faults

Each way is a process of its own. The first table has the page faults of one update of the bundled model's U-Net (batch
4, 64 px), with malloc as it is and with `keep_large_blocks`: each is a page that the system zeroes once more. The
second table has what a process holds more (VmRSS) once Stable Diffusion 1's text tower (random weights, float32,
mapped) has read a prompt, as it is and after `give_back`.
"""

import json
import resource
import subprocess
import sys
import tempfile

import torch

from benchmarks.loading import memory
from latent_diffusion.checkpoint.folder.text_folder import load_text_encoder, save_text_encoder
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.families import emoji, sd1
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.models.unet import UNet
from latent_diffusion.runtime.cpu.allocator import keep_large_blocks
from latent_diffusion.runtime.cpu.pages import give_back

__all__ = ["main"]

WARM, UPDATES = 3, 5


def main() -> None:
    """Measure each way and print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = clip_vocabulary("<|endoftext|>")
        save_text_encoder(TextEncoder(sd1.TEXT[0].build(tokenizer), tokenizer), folder)
        print("| an update of 18 M weights | page faults | of 4 KiB, MiB |\n|---|---|---|")
        for way in ("malloc", "keep_large_blocks"):
            faults = _measured(way, folder)
            print(f"| {way} | {faults:.0f} | {faults / 256:.0f} |")
        print("\n| after a prompt | resident more, MiB |\n|---|---|")
        for way in ("kept", "give_back"):
            print(f"| {way} | {_measured(way, folder):.0f} |")


def _measured(way: str, folder: str) -> float:
    command = [sys.executable, "-m", "benchmarks.page_faults", way, folder]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def update(way: str) -> float:
    """Return the page faults of an update, after the first ones."""
    if way == "keep_large_blocks":
        keep_large_blocks()
    torch.manual_seed(0)
    unet = UNet(emoji.UNET).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    x, t = torch.randn(4, 4, 16, 16), torch.tensor([10, 300, 600, 900])
    states = Conditioning(torch.randn(4, 77, emoji.UNET.cross_attention_dim))
    before = 0
    for k in range(WARM + UPDATES):
        if k == WARM:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        unet(x, t, unet.project(states)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / UPDATES


def prompt(way: str, folder: str) -> float:
    """Return what is resident more, MiB, once a prompt was read."""
    before = memory()["VmRSS"]
    encoder = load_text_encoder(folder)
    with torch.no_grad():
        encoder(["a red apple"])
    if way == "give_back":
        give_back(encoder)
    return memory()["VmRSS"] - before


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(
            json.dumps(update(sys.argv[1]) if sys.argv[1] in ("malloc", "keep_large_blocks") else prompt(*sys.argv[1:]))
        )
    else:
        main()
