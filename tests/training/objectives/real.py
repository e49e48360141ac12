"""Run the real trainer in a process of its own: `processes.train(output, config, overrides..., run=real.run)`."""

from pathlib import Path

from latent_diffusion.train import main


def run(output: Path, config: str, *overrides: str) -> int:
    """Train `config` into `output`; return the exit code."""
    return main([config, f"output={output}", *overrides])
