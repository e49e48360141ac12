"""Pictures of every shape: each exactly once a pass, on any number of processes and after resume."""

import numpy as np
import pytest
from PIL import Image

from latent_diffusion.config import RunConfig
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.batches.loader import batches
from latent_diffusion.data.buckets import Buckets, bucket_sizes, crop_loss
from latent_diffusion.data.order import EMPTY, Group, Order
from latent_diffusion.data.settings import BucketConfig
from latent_diffusion.training.numbers import sample_numbers

COUNT, BATCH = 1000, 12


@pytest.fixture(scope="module")
def order() -> tuple[Order, list]:
    """A thousand sizes over three resolutions."""
    draw = np.random.default_rng(0)
    sizes = np.stack([draw.integers(200, 3000, COUNT), draw.integers(200, 3000, COUNT)], axis=1)
    chosen = Buckets(BucketConfig(), [512, 768, 1024]).of(sizes)
    distinct = sorted(set(chosen))
    own = np.array([distinct.index(size) for size in chosen])
    groups = [Group(np.flatnonzero(own == k), 1.0, k) for k in range(len(distinct))]
    return Order(5, groups, BATCH), chosen


def test_every_picture_once_a_pass_on_any_number_of_processes_and_after_resume(order):
    order, sizes = order
    updates = order.length // BATCH
    values = {"output": "x", "objective": {"name": "x"}, "data": {}, "steps": 2 * updates, "batch_size": BATCH}
    run = RunConfig.model_validate(values)
    seen = {}
    for processes in (1, 2, 3):
        for start in (0, updates // 3):  # resumed in mid-pass
            shares = [sample_numbers(run, start=start, rank=k, processes=processes) for k in range(processes)]
            found = [[order.row(n) for part in parts for n in part] for parts in zip(*shares, strict=True)]
            seen[processes, start] = found
    assert seen[1, 0] == seen[2, 0] == seen[3, 0]
    assert seen[1, updates // 3] == seen[2, updates // 3] == seen[3, updates // 3] == seen[1, 0][updates // 3 :]
    for turn in range(2):
        shown = [row for batch in seen[1, 0][turn * updates : (turn + 1) * updates] for row in batch if row != EMPTY]
        assert sorted(shown) == list(range(COUNT))
    for batch in seen[1, 0]:
        assert len({sizes[row] for row in batch if row != EMPTY}) == 1
    assert seen[1, 0][:updates] != seen[1, 0][updates:]


def test_sizes_are_multiples_of_the_step_and_at_most_the_area():
    for side in (512, 1024):
        sizes = bucket_sizes(side, 64, 256, 2 * side)
        assert (side, side) in sizes and len(sizes) == len(set(sizes)) > 10
        assert all(w % 64 == 0 and h % 64 == 0 and w * h <= side * side and min(w, h) >= 256 for w, h in sizes)
        assert all((h, w) in sizes for w, h in sizes)


def test_a_picture_goes_to_the_nearest_proportions_of_the_largest_size_it_fills():
    buckets = Buckets(BucketConfig(), [512, 1024])
    found = buckets.of(np.array([(1000, 1000), (1100, 1000), (4000, 3000), (3000, 4000), (9000, 500)]))
    assert found == [(512, 512), (1088, 960), (1152, 896), (896, 1152), (2048, 256)]
    assert crop_loss((4000, 3000), (1152, 896)) == pytest.approx(1 - (4 / 3) ** -1 * 1152 / 896, abs=0.04)
    small = Buckets(BucketConfig(enlarge=False), [512]).of(np.array([(300, 200), (600, 600)]))
    assert small == [(256, 192), (512, 512)]


@pytest.fixture
def photos(tmp_path):
    sizes = [(64, 64)] * 5 + [(96, 48)] * 4 + [(40, 80)] * 2
    for k, size in enumerate(sizes):
        Image.new("RGB", size, (k * 20, 0, 0)).save(tmp_path / f"{k:02}.png")
        (tmp_path / f"{k:02}.txt").write_text(f"picture {k}")
    return tmp_path


BUCKETS = {"size": 32, "buckets": {"step": 8, "min_side": 16}}


def test_samples_have_the_size_of_their_bucket_and_the_plan_counts_them(photos):
    data = ImageFolder(DataConfig(path=str(photos), **BUCKETS), 7, batch=4)
    plan = {row.size: row for row in data.plan()}
    assert {size: (row.pictures, row.batches, row.last) for size, row in plan.items()} == {
        (32, 32): (5, 2, 1), (40, 24): (4, 1, 4), (24, 40): (2, 1, 2),
    }  # fmt: skip
    assert data.pass_length == 16
    uncached = ImageFolder(DataConfig(path=str(photos), **BUCKETS, cache_bytes=0), 7, batch=4)
    numbers = [list(range(k, k + 4)) for k in range(0, 16, 4)]
    rows = []
    for batch, other in zip(batches(data, numbers), batches(uncached, numbers), strict=True):
        assert batch.images.equal(other.images) and batch.weights is None and batch.present
        assert {data.size_of(row)[::-1] for row in batch.row} == {tuple(batch.images.shape[2:])}
        assert batch.size_ids[:, 4:].tolist() == [list(batch.images.shape[2:])] * len(batch)
        rows += batch.row
    assert sorted(rows) == list(range(11))


def test_a_process_without_a_picture_computes_one_of_no_weight(photos):
    data = ImageFolder(DataConfig(path=str(photos), **BUCKETS), 7, batch=4)
    empty = next(n for n in range(0, 16, 2) if data.row_of(n) == EMPTY)
    (batch,) = batches(data, [[empty, empty + 1]])
    assert len(batch) == 1 and not batch.present and batch.weights.tolist() == [0.0]
    assert batch.row[0] == data.row_of(empty // 4 * 4)


@pytest.mark.parametrize("fit", ["random_crop", "pad"])
def test_crops_are_drawn_and_borders_have_the_background(photos, fit):
    config = DataConfig(path=str(photos), size=32, fit=fit, background=(0, 255, 0))
    data = ImageFolder(config, 7)
    wide = [data.sample(n) for n in range(60) if data.row_of(n) == 6]
    if fit == "pad":
        assert all(s.size_ids[2:4] == (0, 0) and s.image[:, 0, 0].tolist() == [0, 255, 0] for s in wide)
    else:
        assert data.random_crops and len({s.size_ids[3] for s in wide}) > 1
        assert data.sample(3).image.equal(ImageFolder(config, 7).sample(3).image)
