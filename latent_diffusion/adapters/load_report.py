"""What came of reading a file of changes."""

from collections.abc import Mapping
from dataclasses import dataclass

from latent_diffusion.checkpoint.folder.trained_times import TrainedTimes

__all__ = ["LoadReport"]


@dataclass(frozen=True)
class LoadReport:
    """Which layers a file changes, what it has that this model lacks, and who seems to have written it."""

    name: str  # the adapter's
    file: str
    hash: str  # first 12 hex digits of the SHA-256 of the tensors' bytes, as the A1111 web UI has it
    format: str  # "kohya", "PEFT", "old diffusers" or "LyCORIS"
    family: str | None  # family it was probably made for; None if unknown
    forms: Mapping[str, int]  # layers of each form: "LoRA", "LoHa", "LoKr", "full", "DoRA LoRA", ...
    matched: tuple[str, ...]  # layers: "unet.mid_block.attentions.0.proj_in"
    unmatched: tuple[str, ...]  # keys of the file that no layer of this model has
    inpainting: bool = False  # whether it makes an inpainting U-Net of this plain one
    trained: TrainedTimes | None = None  # of a distilled student: the times that it was trained at

    def __str__(self) -> str:
        forms = ", ".join(f"{count} {form}" for form, count in self.forms.items())
        left = f", {len(self.unmatched)} keys not used" if self.unmatched else ""
        task = ", for inpainting" if self.inpainting else ""
        return f"{self.name}: {forms} ({self.format} file for {self.family or 'an unknown family'}){task}{left}"
