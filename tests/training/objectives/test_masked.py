"""A part of each picture is learned, and what the base draws is kept: masks, and the base's own predictions."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.batches.picture_masks import PictureMasks
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.diffusion.prediction import EPSILON
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text"], "flip": True, "where": {}}


@pytest.fixture(scope="module")
def masked_pictures(pictures, tmp_path_factory):
    """The discs, five of six with a mask: the left half, or a stripe."""
    folder = tmp_path_factory.mktemp("masked") / "discs"
    shutil.copytree(pictures, folder)
    (folder / "metadata.jsonl").unlink()
    for k in range(6):
        (folder / f"{k}.txt").write_text(f"a disc number {k}")
        mask = np.zeros((32, 32), np.uint8)
        mask[:, : 16 if k % 2 else 6] = 255
        if k < 5:
            Image.fromarray(mask).save(folder / f"{k}.mask.png")
    return folder


def test_the_mean_is_over_the_area_and_outside_has_no_gradient():
    loss = DiffusionLoss(ScaledLinearSchedule(), EPSILON)
    draw = torch.Generator().manual_seed(0)
    output = torch.randn(2, 4, 8, 8, generator=draw, dtype=torch.float64).requires_grad_(True)
    target = torch.randn(2, 4, 8, 8, generator=draw, dtype=torch.float64)
    area = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    area[0, :, :2, :3] = 1
    area[1] = torch.rand(1, 8, 8, generator=draw, dtype=torch.float64)
    t = torch.tensor([3, 700])
    losses = loss.compared(output, target, t, area)
    squares = ((output - target) ** 2).detach().numpy()
    wanted = [squares[0, :, :2, :3].mean(), (squares[1] * area[1].numpy()).sum() / (4 * area[1].sum().item())]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-12)
    losses.sum().backward()
    assert output.grad is not None and torch.equal(output.grad[0] != 0, (area[0] > 0).expand(4, 8, 8))
    assert loss.compared(output, target, t, torch.zeros_like(area)).tolist() == [0, 0]
    ones = loss.compared(output, target, t, torch.ones_like(area))
    torch.testing.assert_close(ones, loss.compared(output, target, t))


def test_masks_are_cut_as_their_pictures_are(tmp_path):
    """A picture that is its own mask stays so in every fit, flip and crop."""
    draw = np.random.default_rng(0)
    for k, size in enumerate([(40, 64), (64, 48), (32, 32)]):
        blocks = draw.integers(0, 2, (size[1] // 8, size[0] // 8)).astype(np.uint8) * 255
        picture = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).convert("RGB")
        picture.save(tmp_path / f"{k}.png")
        picture.convert("L").save(tmp_path / f"{k}.mask.png")
        clear = picture.convert("RGBA")
        clear.putalpha(picture.convert("L"))
        (tmp_path / "clear").mkdir(exist_ok=True)
        clear.save(tmp_path / "clear" / f"{k}.png")
    plain = {"size": 32, "captions": [], "flip": True, "background": (0, 0, 0), "subfolders": False}
    for fit in ("crop", "random_crop", "pad"):
        data = ImageFolder(DataConfig(path=str(tmp_path), fit=fit, **plain), seed=0)
        masks = PictureMasks(data, "file")
        assert len(data) == 3
        for number in range(12):
            sample = data.sample(number)
            mask = masks.of_sample(number, sample.row, flipped=sample.flipped)
            assert (mask - sample.image.float().mean(0) / 255).abs().mean() < 0.03
    other = ImageFolder(DataConfig(path=str(tmp_path / "clear"), **plain), seed=0)
    masks = PictureMasks(other, "alpha")
    assert (masks.fitted(2) - other.image(2).float().mean(0) / 255).abs().max() < 0.01


def test_masks_that_do_not_fit_are_refused_and_unused_ones_are_named(
    masked_pictures, pictures, tiny_folder, make_run, tmp_path, caplog
):
    unet = {"name": "unet", "init": str(tiny_folder)}
    data = {**CAPTIONED, "path": str(masked_pictures)}
    with caplog.at_level("WARNING"):
        build_objective(make_run(unet, data))
        assert "has masks, which this run does not read" in caplog.text
        caplog.clear()
        build_objective(make_run({**unet, "masked": {}}, data))
        assert "1 of 6 pictures have no mask; they count whole" in caplog.text and "does not read" not in caplog.text
    for source in ("file", "alpha"):
        with pytest.raises(DataError, match="no picture of 6 has a mask; looked for"):
            build_objective(make_run({**unet, "masked": {"source": source}}, {**CAPTIONED, "path": str(pictures)}))
    with pytest.raises(ConfigError, match="not there where the base itself is trained"):
        build_objective(make_run({**unet, "masked": {"prior": 1.0}}, data))
    for mask, message in (
        (Image.new("L", (32, 32)), "1 of 6 masks are black"),
        (Image.new("L", (30, 32), 255), "is 30x32 px, the picture 32x32"),
    ):
        folder = tmp_path / message[:4]
        shutil.copytree(masked_pictures, folder)
        mask.save(folder / "0.mask.png")
        with pytest.raises(DataError, match=message):
            build_objective(make_run({**unet, "masked": {}}, {**CAPTIONED, "path": str(folder)}))


def test_a_run_learns_the_masked_part_and_keeps_the_rest(masked_pictures, tiny_folder, make_run, tmp_path):
    """With the base's prediction as the target outside, the change outside is far smaller than without."""
    adapter = {"rank": 4, "layers": "all"}
    moved = {}
    for prior in (0.0, 20.0):
        masked = {"outside": 0.0, "prior": prior}
        objective = {"name": "lora", "init": str(tiny_folder), "adapter": adapter, "masked": masked}
        data = {**CAPTIONED, "path": str(masked_pictures)}
        rate = {"learning_rate": 1e-2, "weight_decay": 0.0}
        run = make_run(objective, data, steps=30, optimizer=rate, output=str(tmp_path / f"prior {prior}"))
        torch.manual_seed(0)
        trainer = Trainer(build_objective(run), run, build_accelerator())
        made = trainer.objective
        batch = next(made.batches([[0, 1, 2, 3]]))
        areas = made.player.areas(batch)
        assert areas.weights.shape == (4, 1, *made.player.held[0](batch).shape[2:])
        trainer.fit()
        with torch.no_grad():
            x0, cond = made.player.held[0](batch), made.player.held[1](batch)
            t = torch.tensor([100, 300, 500, 700])
            noised = made.player.loss.noised(x0, t, torch.ones_like(x0))
            ours, base = (u(noised.x, noised.time, u.project(cond)) for u in (made.components.unet, made.base.unet))
            moved[prior] = float(made.player.loss.compared(ours, base, t, areas.outside).mean())
    assert moved[20.0] < 0.5 * moved[0.0]


def test_the_class_keeps_its_look(pictures, tiny_folder, make_run):
    """Prior preservation by the base's own prediction: with it captions of the class move less."""
    moved = {}
    for preserve in (None, {"replace": {"disc": "thing"}, "weight": 20.0}):
        objective = {"name": "lora", "init": str(tiny_folder), "adapter": {"rank": 4}, "preserve": preserve}
        rate = {"learning_rate": 1e-2, "weight_decay": 0.0}
        run = make_run(objective, CAPTIONED, steps=30, optimizer=rate)
        torch.manual_seed(run.seed)
        trainer = Trainer(build_objective(run), run, build_accelerator())
        made = trainer.objective
        player = made.player
        batch = next(made.batches([[0, 1, 2, 3]]))
        if preserve:  # no change yet: at the base nothing is lost
            with torch.no_grad():
                first = player(batch, 0).total
                prior, player.prior = player.prior, None
                assert torch.equal(player(batch, 0).total, first)
                player.prior = prior
        trainer.fit()
        with torch.no_grad():
            x0 = player.held[0](batch)
            cond = made.components.text_encoder(["a red thing"] * 4)
            t = torch.tensor([100, 300, 500, 700])
            noised = player.loss.noised(x0, t, torch.ones_like(x0))
            ours, base = (u(noised.x, noised.time, u.project(cond)) for u in (made.components.unet, made.base.unet))
            moved[preserve is not None] = float(player.loss.compared(ours, base, t).mean())
    assert moved[True] < 0.5 * moved[False]


def test_a_masked_run_from_its_command_on(masked_pictures, tiny_folder, make_run):
    objective = {"name": "unet", "init": str(tiny_folder), "masked": {"outside": 0.1}}
    data = {**CAPTIONED, "path": str(masked_pictures), "fit": "random_crop"}
    assert train(make_run(objective, data, steps=6)) == 0
