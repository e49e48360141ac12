"""Train CLIP, from scratch or on: pictures and their captions find each other within the global batch.

Loss of one pair = half of -log softmax over all texts of its picture, half of that over all pictures of its text; the
features of all processes are gathered with their gradients, so any number of processes computes one global batch.
False captions of a picture ("a red car" of a blue one) are compared with it alone, beside the texts of the batch
(Yuksekgonul et al. 2023, arXiv:2210.01936, section 4: hard negatives teach the order and the relations of words).
From scratch the vocabulary is learned from the captions first. The result is the text encoder of a diffusion model.
Reference: Radford et al. 2021, arXiv:2103.00020, figure 3; open-clip's `ClipLoss`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from latent_diffusion.config import Section
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder, open_pictures
from latent_diffusion.data.batches.loader import Batch, batches
from latent_diffusion.data.batches.picture_masks import warn_of_unused_masks
from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs
from latent_diffusion.data.rows.metadata import captions_of
from latent_diffusion.data.settings import HeldOut
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.clip import CLIPConfig, TowerConfig, TwoTowers
from latent_diffusion.models.tokenizer import Tokenizer
from latent_diffusion.training.monitoring.reopened import BOUNDS, check_agreement
from latent_diffusion.training.networks.parts import refuse_unused
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.objective import Losses, Objective, Player, Share

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["CLIPObjective", "CLIPSettings", "contrastive_loss", "held_out_pairs"]


AMONG = 64
"""Held-out pairs that are compared with each other."""


class Tower(Section):
    """Size of one transformer."""

    width: int = Field(gt=0)
    """Channels of the tokens, a multiple of `heads`."""
    layers: int = Field(gt=0)
    """Blocks."""
    heads: int = Field(gt=0)
    """Heads of attention."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Width of the feed-forward layer, in widths of the tower."""


SIZES = (
    *("text", "vision", "embed_dim", "patch_size", "context_length", "quick_gelu", "vocab_size", "vocabulary_fields"),
)
"""Keys of towers from scratch."""


class CLIPSettings(Section):
    """The `objective:` section."""

    init: str | None = None
    """Folder of a CLIP to train on: open-clip's, transformers' `CLIPModel`, or a model of ours with `clip/`."""
    text: Tower | None = None
    """From scratch: text tower; keys below."""
    vision: Tower | None = None
    """From scratch: image tower; keys below."""
    embed_dim: int = Field(default=256, gt=0)
    """Length of the features that are compared."""
    patch_size: int = Field(default=8, gt=0)
    """Side of the image tower's patches, px; `data.size` is a multiple."""
    context_length: int = Field(default=77, ge=3)
    """Tokens of a caption, start and end included."""
    quick_gelu: bool = False
    """x sigmoid(1.702 x) in place of GELU."""
    vocab_size: int = Field(default=3072, gt=0)
    """Largest size of the vocabulary; fewer where the captions have fewer words."""
    vocabulary_fields: list[str] = Field(default_factory=list)
    """Metadata fields the vocabulary is learned from beside the captions."""
    false_captions: str | None = None
    """Metadata field with captions that are false of a picture, as `false` of composed ones; null: none are read."""
    validation: HeldOut | None = None
    """Filter of held-out pictures, in place of `data.where`, or a share of all, as 0.1; their loss is reported."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode pictures ahead."""

    @model_validator(mode="after")
    def _consistent(self) -> "CLIPSettings":
        given = [name for name in SIZES if name in self.model_fields_set]
        if self.init is not None and given:
            raise ValueError(f"sizes and vocabulary are those of `init`; leave {', '.join(given)} out")
        if self.init is None and (self.text is None or self.vision is None):
            raise ValueError("give either `text` and `vision` (sizes, from scratch) or `init` (a folder of a CLIP)")
        for name, tower in (("text", self.text), ("vision", self.vision)):
            if tower is not None and tower.width % tower.heads:
                raise ValueError(f"{name}: width {tower.width} is not a multiple of heads {tower.heads}")
        return self


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, *, false: Tensor | None = None, together: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the loss (B,) of each of this process's pairs, and whether each picture's best text is its own (B,).

    Args:
        image: unit features of this process's pictures, (B, E).
        text: unit features of their captions, (B, E); B is the same on all processes.
        scale: inverse temperature, ().
        false: cosines (B, K) of each picture with captions that are false of it; -inf where it has fewer.
        together: compare with the pairs of all processes.
    """
    from open_clip.loss import ClipLoss

    spread = together and torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if spread else (0, 1)
    loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=size)
    per_image, per_text = loss.get_logits(image, text, scale)
    own = loss.get_ground_truth(image.device, len(image))
    if false is not None:
        absent = false.isinf()  # masked behind the product: 0 * inf would be the gradient of the scale
        logits = (scale * false.masked_fill(absent, 0)).masked_fill(absent, -torch.inf)
        per_image = torch.cat([per_image, logits], dim=1)
    losses = [F.cross_entropy(logits, own, reduction="none") for logits in (per_image, per_text)]
    return (losses[0] + losses[1]) / 2, (per_image.argmax(dim=1) == own)


class Towers(Player):
    """Both towers and the temperature."""

    def __init__(self, towers: TwoTowers, tokenizer: Any) -> None:
        super().__init__()
        self.towers = towers
        self.tokenizer = tokenizer
        self.false: Callable[[Sequence[int]], list[list[str]]] | None = None
        """False captions of each of some rows of the data; None: none are read."""
        self._known: dict[str, list[int]] = {}

    def ids(self, captions: Sequence[str]) -> Tensor:
        """Return token ids (B, L), padded to the longest; a caption beyond the context is cut."""
        length, end = self.towers.config.context_length, self.tokenizer.eos_token_id
        for caption in {*captions} - self._known.keys():
            ids = self.tokenizer(caption, verbose=False)["input_ids"]
            self._known[caption] = ids if len(ids) <= length else [*ids[: length - 1], end]
        rows = [torch.tensor(self._known[caption]) for caption in captions]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end)

    def false_cosines(self, image: Tensor, false: Sequence[Sequence[str]]) -> Tensor:
        """Return the cosines (B, K) of unit features of pictures (B, E) with false captions of each; -inf for none."""
        texts = [text for own in false for text in own]
        most = max(map(len, false))
        cosines = image.new_full((len(image), most), -torch.inf)
        if texts:
            rows = torch.tensor([k for k, own in enumerate(false) for _ in own], device=image.device)
            places = torch.tensor([k for own in false for k in range(len(own))], device=image.device)
            features = self.towers.encode_text(self.ids(texts).to(image.device)).to(image.dtype)
            features = F.normalize(features, dim=1)
            cosines = cosines.index_put((rows, places), (features * image[rows]).sum(dim=1))
        return cosines

    def forward(self, batch: Batch, step: int) -> Losses:
        like = self.towers.model.logit_scale
        ids = self.ids(batch.captions).to(like.device)
        image, text = self.towers(batch.images.to(like.dtype), ids)
        with torch.autocast(like.device.type, enabled=False):
            scale = self.towers.logit_scale
        false = None
        if self.false is not None and max(map(len, texts := self.false(batch.row))):
            false = self.false_cosines(image.to(like.dtype), texts)
        with torch.autocast(like.device.type, enabled=False):
            loss, found = contrastive_loss(image.to(like.dtype), text.to(like.dtype), scale, false=false)
        return Losses(loss, {"accuracy": found.to(like.dtype), "logit_scale": scale.detach()})


def held_out_pairs(data: ImageFolder, share: Share) -> Iterator[tuple[range, list[str]]]:
    """Yield rows of held-out pictures that are compared with each other, 64 or the last few, and their captions."""
    for block in share.of(-(-len(data) // AMONG)):
        rows = range(block * AMONG, min((block + 1) * AMONG, len(data)))
        yield rows, [data.first_caption(row) for row in rows]


class CLIPObjective(Objective):
    """Two towers, contrastively; exports `text_encoder/`, `tokenizer/` and `clip/`."""

    settings_type = CLIPSettings
    data_type = DataConfig
    couples_samples = True

    def __init__(self, settings: CLIPSettings, data: DataConfig, run: Any) -> None:
        """Read the pictures; read the towers, or learn the vocabulary and build them."""
        if not data.captions:
            raise ConfigError("data.captions: CLIP learns from captions; name the metadata fields that hold them")
        self.settings = settings
        refuse_unused(data, "CLIP")
        if settings.init is None and data.size % settings.patch_size:
            raise ConfigError(f"data.size {data.size} px is not a multiple of patch_size {settings.patch_size} px")
        published = None if settings.init is None else _published(settings.init, data.size)
        self.data, self.held_out = open_pictures(data, settings.validation, run.seed)
        warn_of_unused_masks(self.data)
        self.towers, self.tokenizer = published or _from_scratch(settings, self.data)
        self.towers.model.set_grad_checkpointing(run.gradient_checkpointing)
        player = Towers(self.towers, self.tokenizer)
        if settings.false_captions is not None:
            self._check_false(settings.false_captions)
            player.false = self._false
        self.players = {"clip": player}
        self.ema_modules: dict[str, nn.Module] = {"clip": self.towers}
        self.frozen: dict[str, nn.Module] = {}

    def _check_false(self, field: str) -> None:
        if not any(field in part.source.fields for part in self.data.parts):
            known = sorted({name for part in self.data.parts for name in part.source.fields})
            raise ConfigError(f"objective.false_captions: no row has a field {field!r}; fields are {known}")

    def _false(self, rows: Sequence[int]) -> list[list[str]]:
        assert self.settings.false_captions is not None, "read only where it is set"
        return [captions_of(self.data.rows[row], self.settings.false_captions) for row in rows]

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the towers."""
        self.towers.to(device=accelerator.device, dtype=dtype)

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield batches of pictures and captions."""
        return batches(self.data, numbers, self.settings.workers)

    @torch.no_grad()
    def evaluate(self, share: Share) -> dict[str, Tensor]:
        """Return loss and accuracy of held-out pairs, each among 64 (or the last few), with the first captions."""
        data, player = self.held_out, self.players["clip"]
        if data is None:
            return {}
        assert isinstance(player, Towers), "the only player is the towers"
        like, training = self.towers.model.logit_scale, self.towers.training
        losses, found = [], []
        self.towers.eval()
        for rows, captions in held_out_pairs(data, share):
            images = torch.stack([data.image(row) for row in rows]).to(like.device, like.dtype) / 127.5 - 1
            ids = player.ids(captions).to(like.device)
            image, text = self.towers(images, ids)
            loss, right = contrastive_loss(image, text, self.towers.logit_scale, together=False)
            losses.append(loss)
            found.append(right)
        self.towers.train(training)
        return {"validation_loss": torch.cat(losses), "validation_accuracy": torch.cat(found)} if losses else {}

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write the text encoder and its tokenizer (float32) and what CLIP scores need beside them (float16).

        A CLIP that was trained on is written whole in `clip/` too, in float32.
        """
        from latent_diffusion.checkpoint.folder.clip_folder import from_towers, save_clip

        clip = from_towers(self.towers, self.tokenizer)
        if self.settings.init is None:
            save_clip(clip, folder)
        else:
            save_clip(clip, folder, torch.float32, whole=True)

    @torch.no_grad()
    def verify(self, folder: Path) -> None:
        """Open the folder and compare the text states of some captions with the trained tower's."""
        from latent_diffusion.checkpoint.folder.clip_folder import from_towers
        from latent_diffusion.checkpoint.folder.text_folder import load_text_encoder

        captions = [texts[0] for (texts, *_) in self.data.captions[:4]]
        towers = (from_towers(self.towers, self.tokenizer).text_encoder, load_text_encoder(folder))
        wanted, found = (tower(captions).context for tower in towers)
        check_agreement(folder, "latent_diffusion", {"text_encoder": (wanted, found)}, BOUNDS["float32"])

    def pass_samples(self) -> int:
        """Return the sample numbers of a pass."""
        return self.data.pass_length

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the data, of the vocabulary and of the weights the run starts from."""
        digest = hashlib.sha256(json.dumps(self.tokenizer.merges).encode()).hexdigest()
        prints = {"data.path": self.data.digest, "vocabulary": digest}
        return prints if self.settings.init is None else {**prints, "objective.init": weights_digest(self.towers)}


def _texts(data: ImageFolder, fields: Sequence[str]) -> Iterator[str]:
    """Yield every caption of every picture, and the texts of `fields`."""
    for row, captions in zip(data.rows, data.captions, strict=True):
        yield from (text for texts in captions for text in texts)
        yield from (text for field in fields for text in captions_of(row, field))


def _published(folder: str, size: int) -> tuple[TwoTowers, Tokenizer]:
    from latent_diffusion.checkpoint.folder.clip_towers import load_towers

    towers, tokenizer = load_towers(folder)
    if towers.config.image_size != size:
        raise ConfigError(f"data.size: {size} px; the image tower of {folder} reads {towers.config.image_size} px")
    return towers, tokenizer


def _from_scratch(settings: CLIPSettings, data: ImageFolder) -> tuple[TwoTowers, Tokenizer]:
    """Return new towers, and a tokenizer with a vocabulary learned from the captions."""
    assert settings.text is not None and settings.vision is not None, "checked with the settings"
    pairs = train_byte_pairs(_texts(data, settings.vocabulary_fields), settings.vocab_size)
    config = CLIPConfig(
        text=TowerConfig(**settings.text.model_dump()),
        vision=TowerConfig(**settings.vision.model_dump()),
        vocab_size=len(pairs.vocabulary),
        embed_dim=settings.embed_dim,
        image_size=data.config.size,
        patch_size=settings.patch_size,
        context_length=settings.context_length,
        quick_gelu=settings.quick_gelu,
    )
    return TwoTowers(config), clip_tokenizer(pairs, settings.context_length)
