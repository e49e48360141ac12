"""Outputs of the frozen parts for the data, computed once: latents of pictures, text states of captions.

Caching changes nothing. Of a picture the posterior's mean and log-variance are kept, and a fresh z is drawn from them
at every use, keyed as without a cache; of captions all that can be drawn are kept, the empty one of caption
dropout included. In memory either everything is kept or, over `most` bytes, nothing, and it is read from the cache on
disk or computed batch by batch: a cache that fills on the way would make a resumed run differ from an uninterrupted one
in the last bit.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.data.tensor_cache import TensorCache, key_of
from latent_diffusion.errors import DataError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.randomness import normal
from latent_diffusion.training.networks.caption_rows import TOGETHER, CaptionRows
from latent_diffusion.training.networks.preparing import with_progress
from latent_diffusion.training.networks.weights_digest import weights_digest

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ALONE", "Latents", "LiveTextStates", "MeanStates", "Sharing", "TextStates"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
CHUNK = 32  # pictures at a time


@dataclass(frozen=True)
class Sharing:
    """How the processes of a run fill a cache together: each makes its share, and gets what the others made.

    Attributes:
        rank: number of this process.
        processes: their number.
        wait: returns when all have called it: what is on disk is then whole.
        gather: the items of one process -> those of all.
    """

    rank: int
    processes: int
    wait: Callable[[], None]
    gather: Callable[[list[Any]], list[Any]]

    @classmethod
    def between(cls, accelerator: "Accelerator") -> "Sharing":
        """Return the sharing between the processes of a run."""
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone, gather_object)

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's share."""
        return items[self.rank :: self.processes]


ALONE = Sharing(0, 1, lambda: None, lambda made: made)


class Latents:
    """Scaled latents of batches of a data set's pictures.

    On a CPU every picture is encoded alone, so that its latents have the same bits in any batch, cached or not; on a
    GPU pictures of one size are encoded together.
    """

    def __init__(
        self, autoencoder: AutoencoderKL, data: ImageFolder, seed: int, stored: TensorCache | None = None
    ) -> None:
        """Take the parts and a cache on disk; nothing is computed yet."""
        self._autoencoder, self._data, self._seed, self._stored = autoencoder, data, seed, stored
        self._like = next(autoencoder.parameters()).new_empty(0)  # its weights may be dropped once all is cached
        self._kept: list[dict[int, Tensor]] | None = None  # (2, C, h, w) by flip and row: mean and log-variance
        self._weights = ""
        self._on_disk = False

    @property
    def cached(self) -> bool:
        """Whether the pictures themselves are no longer needed."""
        return self._kept is not None or self._on_disk

    def _bytes(self) -> int:
        """Return what the latents of all pictures take."""
        element = self._like.element_size()
        sizes = (self._data.size_of(row) for row in range(len(self._data)))
        pixels = sum(width * height * (1 + self._data.flips(row)) for row, (width, height) in enumerate(sizes))
        return 2 * self._autoencoder.config.latent_channels * pixels // self._autoencoder.factor**2 * element

    @torch.no_grad()
    def fill(self, most: int, sharing: Sharing = ALONE) -> None:
        """Encode every picture, and its mirror image where the data set flips, if that takes at most `most` bytes.

        With a cache on disk what is missing there is encoded and written, whatever it takes.
        """
        if self._data.random_crops:
            logger.info("latents are computed in every step: crops are drawn for every sample")
            return
        places = [(flip, row) for flip in (False, True) for row in range(len(self._data))]
        places = [(flip, row) for flip, row in places if not flip or self._data.flips(row)]
        needed = self._bytes()
        if self._stored is not None:
            self._weights = weights_digest(self._autoencoder.encoder, self._autoencoder.quant_conv)
            self._fill_disk(self._stored, places, sharing)
            self._on_disk = True
        if needed > most:
            how = "read from disk" if self._on_disk else "computed"
            logger.info("latents are %s in every step: keeping them takes %.1f GB", how, needed / 1e9)
            return
        kept: list[dict[int, Tensor]] = [{}, {}]
        if self._stored is None:
            logger.info("encoding %d pictures", len(places))
            for (flip, row), latents in sharing.gather(list(self._encoded(sharing.of(places)))):
                kept[flip][row] = latents
            self._check_finite(kept)
        else:
            for flip, row in places:
                kept[flip][row] = self._from_disk(self._stored, flip, row)
        self._kept = kept

    def _encoded(self, places: Sequence[tuple[bool, int]]) -> Iterator[tuple[tuple[bool, int], Tensor]]:
        """Yield the latents (2, C, h, w) of rows and their mirror images, on the CPU."""
        for chosen in with_progress(_same_size(self._data, places), len(places), len, "encoding pictures"):
            images = [self._data.image(row).flip(-1) if flip else self._data.image(row) for flip, row in chosen]
            made = self._encode(torch.stack(images).float().div_(127.5).sub_(1).to(self._like))
            yield from zip(chosen, made.cpu().clone(), strict=True)

    def _fill_disk(self, stored: TensorCache, places: Sequence[tuple[bool, int]], sharing: Sharing) -> None:
        missing = [place for place in places if self._key(*place) not in stored]
        logger.info("%d of %d latents are in %s", len(places) - len(missing), len(places), stored.folder)
        for (flip, row), latents in self._encoded(sharing.of(missing)):
            self._check_finite([{row: latents}])
            stored.put(self._key(flip, row), latents)
        stored.flush()
        sharing.wait()
        stored.look_again()
        stored.prune(self._key(*place) for place in places)

    def _from_disk(self, stored: TensorCache, flip: bool, row: int) -> Tensor:
        """Return the latents (2, C, h, w) of a row as they are stored; what is damaged is made again.

        Raises:
            DataError: they are damaged, and the autoencoder is dropped.
        """
        latents = stored.get(self._key(flip, row))
        if latents is None or not bool(latents.isfinite().all()):
            name = self._data.rows[row]["file_name"]
            if next(self._autoencoder.parameters()).is_meta:
                raise DataError(
                    f"latents of {name!r} are damaged in {stored.folder}, and the autoencoder that makes them is "
                    f"dropped; delete the folder, or set memory.drop_encoders=false, and run again"
                )
            logger.warning("latents of %r are damaged on disk and made again", name)
            ((_, latents),) = self._encoded([(flip, row)])
            self._check_finite([{row: latents}])
            stored.put(self._key(flip, row), latents)
        return latents

    def _key(self, flip: bool, row: int) -> str:
        """Return the key on disk: the picture, what is done to it, the encoder's weights, and how they are computed."""
        part, _ = self._data.place(row)
        config = self._data.config
        how = (self._data.size_of(row), part.config.fit, config.background, config.decode, flip)
        machine = (str(self._like.dtype), self._like.device.type, torch.__version__)
        return key_of("latents 1", self._data.content(row), repr(how), self._weights, *machine)

    def _check_finite(self, kept: list[dict[int, Tensor]]) -> None:
        """Refuse latents that would end the run at the same step every time.

        Raises:
            DataError: naming the pictures.
        """
        bad = sorted({row for rows in kept for row, latents in rows.items() if not bool(latents.isfinite().all())})
        if bad:
            names = ", ".join(repr(self._data.rows[row]["file_name"]) for row in bad[:10])
            raise DataError(
                f"the autoencoder's latents are NaN or infinite for {len(bad)} of {len(self._data)} pictures: {names}"
                f"{', ...' if len(bad) > 10 else ''}; leave them out, or set precision=float32"
            )

    def _encode(self, images: Tensor) -> Tensor:
        """Return mean and log-variance (B, 2, C, h, w) of pictures (B, 3, H, W) in [-1, 1]."""
        parts = images.split(1 if images.device.type == "cpu" else CHUNK)
        with torch.autocast(images.device.type, enabled=False):
            made = [self._autoencoder.encode(part.contiguous(memory_format=torch.channels_last)) for part in parts]
        return torch.cat([torch.stack([one.mean, one.logvar], dim=1) for one in made])

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return scaled latents (B, C, h, w), drawn from each picture's posterior with the sample's key."""
        like = self._like
        places = list(zip(batch.flipped, batch.row, strict=True))
        if self._kept is not None:
            both = torch.stack([self._kept[flipped][row] for flipped, row in places]).to(like.device)
        elif self._stored is not None and self._on_disk:
            both = torch.stack([self._from_disk(self._stored, *place) for place in places]).to(like.device)
        else:
            both = self._encode(batch.images.to(like))
        mean, logvar = both.unbind(1)
        noise = normal(self._seed, "posterior", batch.sample, mean.shape[1:]).to(mean)
        return self._autoencoder.scale(mean + torch.exp(0.5 * logvar) * noise)


def _same_size(data: ImageFolder, places: Sequence[tuple[bool, int]]) -> Iterator[list[tuple[bool, int]]]:
    """Yield the places in chunks whose pictures have one size."""
    by_size: dict[tuple[int, int], list[tuple[bool, int]]] = {}
    for place in places:
        by_size.setdefault(data.size_of(place[1]), []).append(place)
    for same in by_size.values():
        yield from (same[start : start + CHUNK] for start in range(0, len(same), CHUNK))


class TextStates:
    """Conditioning of batches of captions, in the dtype the network reads them in.

    On a CPU the states of a caption have the bits that they have alone, in any batch, cached or not.
    """

    def __init__(
        self,
        text_encoder: TextEncoder | TextEncoders,
        dtype: torch.dtype,
        chunks: int = 1,
        stored: TensorCache | None = None,
    ) -> None:
        """Take the encoder, the largest number of chunks of a caption and a cache on disk; nothing is computed yet."""
        self.encoder, self.dtype, self.stored = text_encoder, dtype, stored
        self._device = text_encoder.device  # its weights may be dropped once all is kept
        self.rows = CaptionRows(text_encoder, chunks)
        self._kept: dict[str, Conditioning] | None = None  # of single captions, on the CPU

    @property
    def cached(self) -> bool:
        """Whether the encoder is no longer needed for the captions of the data."""
        return self._kept is not None

    @torch.no_grad()
    def fill(self, captions: Sequence[str], most: int, sharing: Sharing = ALONE) -> None:
        """Encode each distinct caption once, if that takes at most `most` bytes; say how many are too long."""
        distinct = list(dict.fromkeys(captions))
        room = self.rows.room
        cut = [caption for caption in distinct if len(caption) > room]  # a token has one letter or more
        cut = [caption for caption, count in zip(cut, self.encoder.token_counts(cut)) if count > room]
        if cut:
            logger.warning("%d captions have more than %d tokens and are cut, first %r", len(cut), room, cut[0][:80])
        chunks = sum(map(self.rows.count, distinct))
        numbers = chunks * self.encoder.context_length * self.encoder.width + len(distinct) * self.encoder.pooled_width
        needed = numbers * torch.empty(0, dtype=self.dtype).element_size()
        if needed > most:
            logger.info("text states are computed in every step: keeping them takes %.1f GB", needed / 1e9)
            return
        if self.stored is None:
            self._kept = dict(sharing.gather(list(self._each(sharing.of(distinct)))))
            return
        keys = dict(zip(distinct, self._keys(distinct), strict=True))
        missing = [caption for caption in distinct if keys[caption] not in self.stored]
        for caption, made in self._each(sharing.of(missing)):
            self.stored.put(keys[caption], _flat(made))
        self.stored.flush()
        sharing.wait()
        self.stored.look_again()
        self._kept = {caption: self._from_disk(self.stored, caption, key) for caption, key in keys.items()}
        self.stored.prune(keys.values())

    def _keys(self, captions: Sequence[str]) -> list[str]:
        """Return the key on disk of each caption: its tokens, the encoder's weights, and how they are computed."""
        if self.stored is None:
            return [""] * len(captions)
        how = (weights_digest(self.encoder), str(self.dtype), self.encoder.device.type, torch.__version__)
        return [key_of("text 1", *how, *(ids.numpy().tobytes() for ids in self.rows.ids(text))) for text in captions]

    def _from_disk(self, stored: TensorCache, caption: str, key: str) -> Conditioning:
        """Return the states of a caption as they are stored; what is damaged is made again."""
        flat = stored.get(key)
        if flat is None:
            made = self._encode([caption]).to("cpu")
            stored.put(key, _flat(made))
            return made
        states = len(flat) - self.encoder.pooled_width
        pooled = flat[states:].view(1, -1) if self.encoder.pooled_width else None
        return Conditioning(flat[:states].view(1, -1, self.encoder.width), pooled)

    def _each(self, captions: Sequence[str]) -> Iterator[tuple[str, Conditioning]]:
        """Yield each caption with its states, moved to the CPU; on a GPU each is encoded alone, whatever the share."""
        most = TOGETHER if self.encoder.device.type == "cpu" else 1
        groups = [[captions[place] for place in places] for places in self.rows.groups(captions)]
        parts = [group[start : start + most] for group in groups for start in range(0, len(group), most)]
        for part in with_progress(parts, len(captions), len, "encoding captions"):
            made = self._encode(part).to("cpu")
            yield from ((caption, made[k : k + 1].map(Tensor.clone)) for k, caption in enumerate(part))

    def _encode(self, captions: Sequence[str]) -> Conditioning:
        """Return the states of captions of equally many chunks."""
        device = self.encoder.device
        encode = self.rows.encode_each if device.type == "cpu" else self.rows.encode
        with torch.autocast(device.type, enabled=False):
            return encode(captions).to(dtype=self.dtype)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Return the conditioning of B captions of n chunks: context (B, n L, D) and, of two towers, pooled (B, P)."""
        if self._kept is None:
            return self._encode(captions)
        return Conditioning.cat([self._kept[caption] for caption in captions]).to(self._device)

    def uncached(self) -> "TextStates":
        """Return the same for captions that are not kept."""
        return TextStates(self.encoder, self.dtype, self.rows.most)


def _flat(states: Conditioning) -> Tensor:
    """Return the states of one caption as one row of numbers."""
    return torch.cat([part.flatten() for part in (states.context, states.pooled) if part is not None])


class MeanStates:
    """Mean text state of each caption, by a frozen encoder; on a CPU with the same bits in any batch, cached or not."""

    def __init__(self, text_encoder: TextEncoder | TextEncoders) -> None:
        """Take the encoder; nothing is computed yet."""
        self._states = TextStates(text_encoder, torch.float32)
        self._kept: dict[str, Tensor] = {}  # (1, D), on the CPU

    def fill(self, captions: Iterable[str], sharing: Sharing = ALONE) -> None:
        """Encode each distinct caption once."""
        distinct = list(dict.fromkeys(captions))
        mine = sharing.of(distinct)
        made = [(text, self._mean(text)) for text in with_progress(mine, len(mine), lambda _: 1, "encoding captions")]
        self._kept = dict(sharing.gather(made))

    def _mean(self, caption: str) -> Tensor:
        return self._states([caption]).context.mean(dim=1).cpu()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return the means of B captions, as text states (B, 1, D) of one token, on the CPU."""
        kept = self._kept
        return torch.stack([kept[text] if text in kept else self._mean(text) for text in captions])


class LiveTextStates:
    """Conditioning of batches of captions by a text encoder that is trained: encoded in every step, with gradients."""

    def __init__(self, text_encoder: TextEncoder | TextEncoders, chunks: int = 1) -> None:
        """Take the encoder and the largest number of chunks of a caption."""
        self.encoder = text_encoder
        self.rows = CaptionRows(text_encoder, chunks)

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Return the conditioning of B captions of n chunks, with its graph where gradients are on."""
        return self.rows.encode(captions)

    def uncached(self) -> "LiveTextStates":
        """Return itself: nothing is kept."""
        return self
