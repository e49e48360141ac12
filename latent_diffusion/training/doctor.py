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


@dataclass
class Diagnosis:
    """What was found: `facts` are good to know, `faults` should be mended; each has a heading and what to do."""

    findings: Findings
    facts: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str, list[int]]] = field(default_factory=list)
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
            *(["to mend:", *(f"  {line}" for line in found)] if found else ["nothing to mend in the data"]),
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
            told.faults.append(("the run cannot start", str(error), []))
    return told


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
    for head, what, which in (
        ("broken", "cannot be trained on; repair them, or leave them out with --fix", found.broken),
        (
            "without a caption",
            "write one, or set data.missing_captions=empty or data.default_caption",
            found.uncaptioned,
        ),
        ("masks that do not fit", "draw them again at the size of their pictures", found.bad_masks),
        ("copies", "are the same file as another; each is trained on as often as it is there", list(copies)),
        ("near-duplicates", "look like another picture; keep the best of each", list(near)),
        (
            "small",
            "are scaled up to the training size and get blurred; remove them, or lower data.size",
            found.enlarged,
        ),
    ):
        if which:
            others = {"copies": copies, "near-duplicates": near}.get(head)
            if others is not None:
                told.twins[len(told.faults)] = [others[k] for k in which]
            told.faults.append((f"{len(which)} {head}", what, which))


def _plan(told: Diagnosis, kind: type[Objective], run: RunConfig, *, measure: bool) -> None:
    run, accelerator, kernels = set_up(run)
    good = len(told.findings.pictures) - len(told.findings.broken)
    memory = plan_memory(kind, run, accelerator.device, kernels, good)
    if memory is not None:
        told.memory = memory.lines()[:1]
        if not memory.fits:
            told.faults.append(("the run does not fit in memory", memory.trouble(), []))
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
