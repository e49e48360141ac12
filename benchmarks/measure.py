"""A whole benchmark: for each piece of work the reference, the peaks, the race, the peaks again, and the rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.agreement import Agreement, agreement
from benchmarks.case import OURS
from benchmarks.goals import goal_of
from benchmarks.lossy import call_options, is_lossy
from benchmarks.peaks import measure_peaks, peak_of
from benchmarks.plan import AbsentError, Plan
from benchmarks.race import Lane, Ratio, race, ratio
from benchmarks.report import Report, Row, row_of
from benchmarks.worker import Worker, case_of
from latent_diffusion.checkpoint.folder.tiny_folder import open_tiny
from latent_diffusion.checks import check_size
from latent_diffusion.errors import ResourceError
from latent_diffusion.pipeline.call.approximate import choose_approximations
from latent_diffusion.runtime.placement import DTYPES

__all__ = ["check", "measure"]

REFERENCE = "diffusers"  # in float32
EXACT = 1e-4  # relative error that counts as the same, in float32
ROUNDING = 1.05  # times diffusers' own error in the same half precision: the order of sums moves it by some percent

Tell = Callable[[str], None]
Made = dict[str, Tensor]
Peaks = dict[str, dict[str, float]]  # by dtype and kind of work


def check(plan: Plan, others: Sequence[str]) -> None:
    """Refuse what could not be measured, before anything is written.

    Raises:
        ConfigError: no such case, a size that no model works at, or a lossy way that is none or not for this model.
        CheckpointError: no such model.
    """
    case = case_of(plan)
    check_size("--size", case.size)
    for tool in filter(is_lossy, others):
        parts = case.model.described
        asked = call_options(tool).get("approximate")
        choose_approximations(asked, parts.unet, partial(open_tiny, autoencoder=parts.autoencoder))


def measure(plan: Plan, others: Sequence[str], rounds: int | None, report: Report, tell: Tell) -> list[Row]:
    """Measure one piece of work with all tools, adding the rows to the report as they grow.

    Raises:
        ConfigError: no such case, or a value that cannot be.
        CheckpointError: no such model.
        ResourceError: our own part failed.
    """
    tell("counting operations")
    case = case_of(plan)
    known = {"plan": plan, "title": case.title, "size": case.size, "samples": case.batch, "gflop": case.flops() / 1e9}
    reference = _reference(plan, others, case.reference_calls, tell)
    peaks: list[Peaks] = []
    rows: list[Row] = []
    for lanes in race(plan, (OURS, *others), rounds, tell):
        if lanes[0].facts is None:
            raise ResourceError(f"{plan.case}: ours could not be measured: {lanes[0].absent}")
        if not peaks:
            tell("peaks")
            peaks.append(_peaks(plan.device, {lane.facts.dtype for lane in lanes if lane.facts}))
            continue  # nothing is timed yet
        rows = _rows(lanes, known, peaks, reference)
        report.replace(rows)
    tell("peaks again")
    peaks.append(_peaks(plan.device, set(peaks[0])))
    rows = _rows(lanes, known, peaks, reference)
    report.replace(rows)
    return rows


def _reference(plan: Plan, others: Sequence[str], calls: int, tell: Tell) -> Made | None:
    """Return what diffusers makes in float32, from a process of its own.

    None where the race has one that tells, and where lossy ways are compared with our own exact one.
    """
    if (REFERENCE in others and plan.dtype != "bfloat16") or (others and all(map(is_lossy, others))):
        return None
    tell("reference: diffusers in float32")
    try:
        worker = Worker(replace(plan, dtype="float32"), REFERENCE)
    except AbsentError as absent:
        raise ResourceError(f"{plan.case}: no reference to compare with: {absent}") from None
    try:
        for _ in range(calls):
            worker.turn()
        return worker.result()
    finally:
        worker.close()


def _peaks(device: str, dtypes: set[str]) -> Peaks:
    return {dtype: measure_peaks(device, DTYPES[dtype]) for dtype in sorted(dtypes)}


def _rows(lanes: Sequence[Lane], known: dict[str, Any], peaks: Sequence[Peaks], reference: Made | None) -> list[Row]:
    """Return a row for each lane, with what comparing them tells."""
    plan, ours = known["plan"], lanes[0]
    if reference is None:
        reference = next((lane.made for lane in lanes if lane.tool == REFERENCE and lane.made), ours.made)
    exact = {True: ours.made, False: reference}
    found = {lane.tool: agreement(lane.made, exact[is_lossy(lane.tool)]) for lane in lanes if lane.made and ours.made}
    rows = []
    for lane in lanes:
        if lane.facts is None:
            rows.append(Row(tool=lane.tool, skipped=lane.absent, **known))
            continue
        measured = {when: part[lane.facts.dtype] for when, part in zip(("before", "after"), peaks)}
        rows.append(
            row_of(
                lane,
                **known,
                peaks=measured,
                peak=peak_of(*measured.values()),
                agreement=found.get(lane.tool),
                lossy=_lossy(lane, found, lanes),
                ratio=_ratio(lane, ours),
                goal=None if lane is ours else goal_of(plan, lane.tool),
            )
        )
    return rows


def _ratio(lane: Lane, ours: Lane) -> Ratio | None:
    """Return how much faster ours is than a peer, or a lossy way than ours."""
    if lane is ours:
        return None
    pair = (ours.seconds, lane.seconds) if is_lossy(lane.tool) else (lane.seconds, ours.seconds)
    return ratio(*pair)


def _lossy(lane: Lane, found: dict[str, Agreement], lanes: Sequence[Lane]) -> bool:
    """Whether a result is further from the reference than rounding in its dtype explains.

    In half precision the measure is diffusers' own error in the same dtype, where it runs in the same race.
    """
    if is_lossy(lane.tool):
        return True
    if lane.tool not in found or lane.facts is None:
        return False
    if lane.facts.dtype == "float32":
        return found[lane.tool].error > EXACT
    theirs = [
        found[other.tool].error
        for other in lanes
        if other.tool.startswith(REFERENCE) and other.facts and other.facts.dtype == lane.facts.dtype and other.made
    ]
    return bool(theirs) and found[lane.tool].error > ROUNDING * max(theirs)
