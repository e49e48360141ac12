"""The `data:` section of a run: which pictures and captions, and how they are read.

Every key of `ReadingConfig` may stand in the section itself, where it holds for all sources, or in one of `sources`.
"""

from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from latent_diffusion.config import Section
from latent_diffusion.data.kohya_toml import kohya_section
from latent_diffusion.data.pictures.images import MAX_PIXELS
from latent_diffusion.data.places.stalled import READ_TIMEOUT
from latent_diffusion.errors import ConfigError
from latent_diffusion.randomness import uniform

__all__ = [
    "BucketConfig",
    "CacheConfig",
    "ComposedConfig",
    "DataConfig",
    "HeldOut",
    "ReadingConfig",
    "SourceConfig",
    "WordingConfig",
]

HeldOut = dict[str, str | list[str]] | float
"""Which pictures are held out: a filter in place of `where`, or a share of them, drawn by the names of their files."""


class WordingConfig(Section):
    """How captions are changed when they are read; files stay as they are. Applied in this order."""

    replace: dict[str, str] = Field(default_factory=dict)
    """Texts that are replaced, in this order: `{"1girl": "a girl"}`."""
    trigger: str | None = None
    """Word or phrase that a caption begins with, unless it has it already; never dropped or moved."""
    prefix: str = ""
    """Text in front of every caption; the two are joined by a space."""
    suffix: str = ""
    """Text behind every caption."""
    lines: Literal["join", "first", "draw"] = "join"
    """A caption of several lines: one text, its first line, or a line drawn for every sample."""
    wildcards: bool = False
    """Draw one of the choices in `{red|green|blue}` for every sample."""
    separator: str = ","
    """Text between two tags."""
    shuffle: bool = False
    """Draw a new order of the tags for every sample."""
    drop_tags: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tags left out of every sample."""
    keep: int = Field(default=0, ge=0)
    """Tags at the front that are neither moved nor left out."""
    keep_separator: str | None = None
    """Text that ends the kept tags, as in `cat, photo ||| red, small`; a second one begins kept tags at the end."""
    second_separator: str | None = None
    """Text that becomes `separator` at the end, so that what it joins is moved or left out as one tag."""


class BucketConfig(Section):
    """Pictures in their own proportions: each goes to the size nearest to its own, a batch has one size."""

    sizes: list[int] = Field(default_factory=list)
    """Sides whose squares have the area of a bucket, in px; a picture takes the largest it fills. []: `size`."""
    step: int = Field(default=64, gt=0)
    """Sides of buckets are multiples of this, in px."""
    min_side: int = Field(default=256, gt=0)
    """Shortest side of a bucket, in px; at most `size`."""
    max_side: int | None = Field(default=None, gt=0)
    """Longest side of a bucket, in px; null: twice the size."""
    enlarge: bool = True
    """Scale small pictures up to a bucket; false: they get buckets of their own size."""


class CacheConfig(Section):
    """What is computed once of pictures and captions, kept on disk for this run and others."""

    folder: str
    """Folder of the cache; several runs may share one."""
    gigabytes: float = Field(default=50.0, gt=0)
    """What it may take; what was not used for longest goes first."""


class ComposedConfig(Section):
    """Pictures composed of those of a source: things in other colours and places, counted, in pairs, before grounds."""

    rows: int = Field(default=100_000, gt=0)
    """Number of different pictures; each is made when its turn comes."""
    seed: int = Field(default=0, ge=0)
    """Seed of the pictures, beside the run's, which draws their order."""
    shares: dict[Literal["plain", "colour", "ground", "place", "count", "pair", "form"], float] = Field(
        default_factory=lambda: {
            **{"plain": 3.0, "colour": 2.0, "ground": 2.0, "place": 1.0, "count": 1.0, "pair": 2.0, "form": 0.5}
        },
        min_length=1,
    )
    """Kind of picture: weight; plain are the source's own pictures with their captions."""
    held_out: str | None = None
    """File of combinations that are never drawn, as `assets/composition.jsonl`."""
    name: str = "name"
    """Metadata field with the name of the thing, as it stands in `text` behind an article."""
    synonyms: dict[str, list[str]] = Field(default_factory=dict)
    """Other words for names: `{automobile: [car]}`."""

    @field_validator("shares")
    @classmethod
    def _some_share(cls, shares: dict[str, float]) -> dict[str, float]:
        if min(shares.values()) < 0 or sum(shares.values()) <= 0:
            raise ValueError("shares are 0 or more, and one of them is more")
        return shares


class ReadingConfig(Section):
    """How one source is read."""

    layout: Literal["auto", "imagefolder", "kohya", "parquet", "datasets", "webdataset"] = "auto"
    """What `path` is; auto: by what lies there."""
    subfolders: bool = True
    """Read the folders in a folder too."""
    picture: str | None = None
    """Column or ending of the pictures, for tables and tars; null: the only one that holds pictures."""
    where: dict[str, str | list[str]] = Field(default_factory=dict)
    """Keep rows whose metadata field has (one of) these values, for example `{split: train}`."""
    where_not: dict[str, str | list[str]] = Field(default_factory=dict)
    """Leave out rows whose metadata field has (one of) these values."""
    captions: list[str] | dict[str, float] = Field(default_factory=lambda: ["text"])
    """Metadata fields with captions, drawn as often as listed, or field: weight; then one of the texts of the field."""
    caption_ending: str | None = None
    """Ending of the caption files beside pictures, such as `.txt`; null: `.txt` or `.caption`."""
    default_caption: str | None = None
    """Caption of pictures that have none."""
    missing_captions: Literal["error", "empty"] = "error"
    """A row without any caption: an error, or the empty prompt."""
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of samples that get the empty prompt, the one guidance is measured against when sampling."""
    wording: WordingConfig = WordingConfig()
    """Changes to captions; keys below."""
    flip: bool = False
    """Mirror half of the samples left to right."""
    fit: Literal["crop", "random_crop", "pad"] = "crop"
    """Pictures of other proportions: the centre, a part drawn for every sample, or all with borders (`background`)."""
    weight: float = Field(default=1.0, gt=0, le=100_000)
    """How often a pass shows each picture; below 1: a share of the pictures, others in the next pass."""
    regularisation: bool = False
    """Pictures of the class: all of them together are shown as often as all other pictures together."""
    loss_weight: float = Field(default=1.0, ge=0)
    """Factor of the loss of these pictures."""
    read_timeout: float = Field(default=READ_TIMEOUT, gt=0, le=1e6)
    """Longest wait for one file of the data, in s; a disk that gives nothing for so long ends the run."""
    composed: ComposedConfig | None = None
    """Compose new pictures of these, which are things on white; null: read them as they are. Keys below."""

    @field_validator("captions")
    @classmethod
    def _some_weight(cls, captions: list[str] | dict[str, float]) -> list[str] | dict[str, float]:
        if isinstance(captions, dict) and (not captions or min(captions.values()) <= 0):
            raise ValueError("weights are above 0; leave out a field that is not to be drawn")
        return captions


class SourceConfig(ReadingConfig):
    """One of several sources."""

    path: str = Field(min_length=1)
    """As `data.path`."""
    size: int | None = Field(default=None, gt=0)
    """Side of these pictures, in px, with `buckets`; null: `data.size`."""


class DataConfig(ReadingConfig):
    """What to train on: the `data:` section of a run."""

    path: str | None = Field(default=None, min_length=1)
    """A folder or .zip of pictures, parquet, `datasets`, tars, kohya's TOML, hf://datasets/OWNER/NAME; docs/data.md."""
    sources: list[SourceConfig] = Field(default_factory=list)
    """Several, in place of `path`: each has a `path` and any of the keys above `path`, which win there."""
    download: bool = False
    """Download what `path` names on the Hugging Face Hub; false: only what its cache on this machine has is read."""
    size: int = Field(gt=0)
    """Side of the training pictures, in px."""
    buckets: BucketConfig | None = None
    """Train on pictures in their own proportions; null: squares. Keys below."""
    check: Literal["all", "none"] = "all"
    """Decode every picture before the first step, or each when its turn comes."""
    on_bad: Literal["error", "skip"] = "error"
    """A picture that cannot be read: stop before training, or go on without it (at most `max_bad` of all)."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """Largest share of pictures that `on_bad: skip` leaves out."""
    quarantine: str | None = None
    """File with the names of pictures to leave out, one a line, as `latent-diffusion doctor --fix` writes it."""
    min_side: int = Field(default=16, gt=0)
    """Smallest side of a picture, in px, as stored."""
    max_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """Largest picture, in px, as stored."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour seen through transparent parts and in borders, 0..255 each."""
    decode: Literal["exact", "fast"] = "exact"
    """How JPEGs of 4 times the training size and more are decoded: fast, at 1/2, 1/4 or 1/8 of their sides."""
    cache_bytes: int = Field(default=2**30, ge=0)
    """Keep scaled pictures in memory up to this many bytes."""
    cache: CacheConfig | None = None
    """Keep latents and text states on disk, bit for bit; null: in memory. Keys below."""

    _share: float = PrivateAttr(0.0)  # of the pictures that is held out
    _held: bool = PrivateAttr(False)  # whether these are the pictures that are read; else all others are

    @model_validator(mode="before")
    @classmethod
    def _of_kohya(cls, values: Any) -> Any:
        """Read the sources, and what is not set here, from kohya's file."""
        path = values.get("path") if isinstance(values, dict) else None
        if not isinstance(path, str) or not path.endswith(".toml"):
            return values
        return {**kohya_section(path), **{key: value for key, value in values.items() if key != "path"}}

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either `path` (one source) or `sources` (several), not both")
        if self.check == "none" and self.on_bad == "skip":
            raise ValueError("on_bad: skip needs check: all, since pictures are left out before the first step")
        if all(part.loss_weight == 0 for part in self.parts()):
            raise ValueError("loss_weight is 0 everywhere; then nothing is learned")
        for part in self.parts():
            if part.composed is not None:
                self._check_composed(part)
        return self

    def _check_composed(self, part: SourceConfig) -> None:
        if self.check == "all":
            raise ValueError("composed needs check: none, since its pictures are made when their turn comes")
        if part.flip:
            raise ValueError("composed: leave flip out, since captions name left and right")
        if self.buckets is not None:
            raise ValueError("composed: leave buckets out, since its pictures are squares")

    def parts(self) -> list[SourceConfig]:
        """Return every source with all its settings: its own, or else those of the section."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in ReadingConfig.model_fields}
        if self.path is not None:
            return [SourceConfig(path=self.path, **shared)]
        return [
            source.model_copy(update={k: v for k, v in shared.items() if k not in source.model_fields_set})
            for source in self.sources
        ]

    @property
    def share_held_out(self) -> float:
        """The share of the pictures that is held out of training; 0 where a filter or nothing is."""
        return self._share

    def reads(self, name: str) -> bool:
        """Return whether a picture is read where a share is held out: a draw keyed with its name alone decides."""
        return (uniform(0, f"held out {name}", 0) < self._share) is self._held

    def trained_on(self, chosen: HeldOut | None) -> Self:
        """Return the section for training: without a share that is held out."""
        return self._of_share(chosen, held=False) if isinstance(chosen, float) else self

    def held_out(self, chosen: HeldOut) -> Self:
        """Return the section for held-out pictures: other rows, as squares, and nothing that is drawn.

        Filters of `where_not` stay, but for those on a field of a new `where`: they leave the same pictures out of
        training.
        """

        def plain(config: ReadingConfig) -> dict[str, Any]:
            values: dict[str, Any] = {"flip": False, "caption_dropout": 0.0, "weight": 1.0}
            values |= {"regularisation": False, "loss_weight": 1.0, "composed": None}
            if isinstance(chosen, dict):
                inherits = config is not made and "where_not" not in config.model_fields_set
                without = made.where_not if inherits else config.where_not
                values |= {"where": chosen}
                values |= {"where_not": {field: names for field, names in without.items() if field not in chosen}}
            return values | ({"fit": "crop"} if config.fit == "random_crop" else {})

        made = self._of_share(chosen, held=True) if isinstance(chosen, float) else self
        sources = [source.model_copy(update=plain(source) | {"size": None}) for source in made.sources]
        return made.model_copy(update=plain(made) | {"buckets": None, "sources": sources})

    def _of_share(self, share: float, *, held: bool) -> Self:
        if not 0 < share < 1:
            raise ConfigError(f"objective.validation: {share:g}; a share that is held out lies between 0 and 1")
        if any(part.composed is not None for part in self.parts()):
            raise ConfigError(
                f"objective.validation: {share:g}; pictures are composed of all that pass data.where; hold some out by "
                "a filter, such as objective.validation.split=val"
            )
        made = self.model_copy()
        made._share, made._held = share, held
        return made
