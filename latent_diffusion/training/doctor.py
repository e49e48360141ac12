"""The examination of a run before it starts: its data, the plan, and three measured updates."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from latent_diffusion.config import RunConfig, parse_section
from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.data.checks.examination import Findings, examine
from latent_diffusion.errors import LatentDiffusionError
from latent_diffusion.registry import find
from latent_diffusion.training.objective import Objective
from latent_diffusion.training.plan.memory_plan import plan_memory
from latent_diffusion.training.plan.run_plan import measured, planned_line, with_steps
from latent_diffusion.training.run import build_objective, set_up
from latent_diffusion.training.trainer import Trainer

__all__ = ["Diagnosis", "diagnose"]

SHOWN = 5  # names in a line
TAGS = 20  # most frequent tags that are named
ROOM = 75  # tokens of a chunk of text
STOPPED = ("the run cannot start", "the run does not fit in memory")


@dataclass
class Diagnosis:
    """What was found: `facts` are good to know, `faults` should be mended; each has a heading and what to do.

    Attributes:
        stopping: how many of the first faults keep the run from starting.
    """

    findings: Findings
    facts: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str, list[int]]] = field(default_factory=list)
    stopping: int = 0
    plan: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    twins: dict[int, list[int]] = field(default_factory=dict)
    """Number of a fault -> the picture that each of its pictures is a copy of, or looks like."""

    def lines(self) -> list[str]:
        """Return everything as text."""
        found = [f"{head}: {what}{self.named(which)}" for head, what, which in self.faults]
        return [
            *(f"{head}: {what}" for head, what in self.facts),
            *_listed("to mend before the run can start", found[: self.stopping]),
            *_listed("to look at, the run can start", found[self.stopping :]),
            *([] if found else ["nothing to mend in the data"]),
            *self.plan,
            *self.memory,
            *self.measured,
        ]

    def named(self, which: list[int]) -> str:
        """Return the names of the first pictures."""
        names = [self.findings.pictures[k].name for k in which[:SHOWN]]
        return f": {', '.join(map(repr, names))}{', ...' if len(which) > SHOWN else ''}" if names else ""

    def quarantine(self) -> str:
        """Return the list for `data.quarantine`: broken pictures; copies as remarks, since a copy may be meant."""
        pictures = self.findings.pictures
        lines = ["# pictures to leave out: SOURCE<tab>NAME<tab>REASON; set data.quarantine to this file"]
        broken = [pictures[k] for k in self.findings.broken]
        lines += [f"{one.where}\t{one.name}\t{' '.join(one.fault.split())}" for one in broken]
        for first, *others in self.findings.copies():
            name = pictures[first].name
            lines += [f"# {pictures[k].where}\t{pictures[k].name}\tthe same file as {name}" for k in others]
        return "\n".join(lines) + "\n"


def _listed(head: str, lines: list[str]) -> list[str]:
    return [f"{head}:", *(f"  {line}" for line in lines)] if lines else []


def diagnose(
    run: RunConfig, progress: Callable[[str, int, int], None] | None = None, *, measure: bool = True
) -> Diagnosis:
    """Examine the data of a run, then measure it with the pictures that can be used.

    Raises:
        ConfigError: the configuration is wrong.
        DataError: a source cannot be opened.
    """
    kind = find("latent_diffusion.training.objectives", str(run.objective["name"]))
    config = parse_section(kind.data_type, run.data, "data")
    assert isinstance(config, DataConfig), "checked by the command"
    findings = examine(config, run.seed, progress)
    told = Diagnosis(findings)
    _judge(told, config)
    if len(findings.broken) < len(findings.pictures):
        lenient = {**run.data, "check": "all", "on_bad": "skip", "max_bad": 1.0, "missing_captions": "empty"}
        try:
            _plan(told, kind, run.model_copy(update={"data": lenient}), measure=measure)
        except LatentDiffusionError as error:
            _stop(told, STOPPED[0], str(error))
    return told


def _stop(told: Diagnosis, head: str, what: str) -> None:
    """Put what keeps the run from starting behind the last of its kind."""
    told.faults.insert(told.stopping, (head, what, []))
    told.twins = {k + (k >= told.stopping): twins for k, twins in told.twins.items()}
    told.stopping += 1


def _judge(told: Diagnosis, config: DataConfig) -> None:
    """Write down what the pictures, captions and masks are like."""
    found = told.findings
    sources = ", ".join(dict.fromkeys(part.source.where for part in found.parts))
    told.facts.append(("pictures", f"{len(found.pictures)} in {sources}"))
    sizes = sorted(min(p.size) for p in found.pictures if p.size)
    if sizes:
        told.facts.append(
            ("shorter sides", f"{sizes[0]} px to {sizes[-1]} px, half of them {sizes[len(sizes) // 2]} px or more")
        )
    if found.tags:
        frequent = ", ".join(f"{tag!r} {count}" for tag, count in found.tags.most_common(TAGS))
        told.facts.append(("most frequent tags", frequent))
    masks = sum(p.mask_fault is not None for p in found.pictures)
    if masks:
        told.facts.append(("masks", f"{masks} pictures have one"))
    copies = {k: group[0] for group in found.copies() for k in group[1:]}
    near = dict(sorted((b, a) for a, b in found.near()))
    captioned = any(found.parts[found.pictures[k].part].config.missing_captions == "error" for k in found.uncaptioned)
    write = "write one, or set data.missing_captions=empty or data.default_caption"
    kinds = [  # whether the run cannot start with it, one, many, what to do, pictures, and what each is like
        (config.on_bad == "error", "broken", "broken", "repair, or leave out with --fix", found.broken, None),
        (captioned, "without a caption", "without a caption", write, found.uncaptioned, None),
        (False, "mask that does not fit", "masks that do not fit", "draw at the picture's size", found.bad_masks, None),
        (False, "copy", "copies", "of another file; trained on as often as it is there", [*copies], copies),
        (False, "near-duplicate", "near-duplicates", "like another picture; keep the best of each", [*near], near),
        (False, "small", "small", "scaled up and blurred; remove, or lower data.size", found.enlarged, None),
    ]
    for stops, one, many, what, which, twins in sorted(kinds, key=lambda kind: not kind[0]):
        if which:
            if twins is not None:
                told.twins[len(told.faults)] = [twins[k] for k in which]
            told.faults.append((f"{len(which)} {one if len(which) == 1 else many}", what, which))
            told.stopping += stops


def _plan(told: Diagnosis, kind: type[Objective], run: RunConfig, *, measure: bool) -> None:
    run, accelerator, kernels = set_up(run)
    good = len(told.findings.pictures) - len(told.findings.broken)
    memory = plan_memory(kind, run, accelerator.device, kernels, good)
    if memory is not None:
        told.memory = memory.lines()[:1]
        if not memory.fits:
            _stop(told, STOPPED[1], memory.trouble())
        if memory.missing:
            return
        run = memory.run
    torch.manual_seed(run.seed)
    objective = build_objective(run)
    run = with_steps(run, objective)
    told.plan = [planned_line(run, objective.pass_samples()), *objective.plan_lines()]
    captions = list(dict.fromkeys(text for texts in told.findings.captions for text in texts))
    components = getattr(objective, "components", None)
    if components is not None and captions:
        counts = sorted(components.text_encoder.token_counts(captions))
        long = sum(count > ROOM for count in counts)
        half = counts[len(counts) // 2]
        what = f"{counts[0]} to {counts[-1]}, half of them {half} or fewer; {long} have more than {ROOM}"
        told.facts.append(("tokens of a caption", what))
    if measure:
        told.measured = measured(Trainer(objective, run, accelerator, kernels))
    accelerator.end_training()
