import math
from pathlib import Path

import pytest
import torch
from processes import losses_of

from latent_diffusion.config import parse_section, read_config
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.run import build_objective, train

pytest.importorskip("open_clip")

TINY = {
    "name": "clip",
    "embed_dim": 16,
    "patch_size": 8,
    "vocab_size": 560,
    "text": {"width": 32, "layers": 2, "heads": 2, "mlp_ratio": 2},
    "vision": {"width": 32, "layers": 1, "heads": 2, "mlp_ratio": 2},
}
CAPTIONS = {"captions": ["text", "text_alt"]}


def test_loss_is_open_clips_and_one_a_pair():
    from open_clip.loss import ClipLoss

    from latent_diffusion.training.objectives.clip import contrastive_loss

    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(9.0, dtype=torch.float64)
    losses, found = contrastive_loss(image, text, scale)
    assert losses.shape == (6,) and found.dtype == torch.bool
    assert torch.allclose(losses.mean(), ClipLoss()(image, text, scale), atol=1e-12)
    logits = scale * image @ text.T  # by hand, the first pair
    by_image, by_text = (row.logsumexp(0) - row[0] for row in (logits[0], logits[:, 0]))
    assert torch.allclose(losses[0], (by_image + by_text) / 2, atol=1e-12)


def test_false_captions_are_compared_with_their_own_picture():
    from latent_diffusion.training.objectives.clip import contrastive_loss

    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    false = torch.tensor([[0.3, -0.1], [0.2, -torch.inf], [-torch.inf, -torch.inf]], dtype=torch.float64)
    losses, _ = contrastive_loss(image, text, scale, false=false)
    plain, _ = contrastive_loss(image, text, scale)
    assert torch.equal(losses[2], plain[2])  # it has none
    logits = torch.cat([scale * image[1] @ text.T, scale * false[1, :1]])  # by hand, the second pair
    by_text = scale * image @ text[1]
    wanted = (logits.logsumexp(0) - logits[1] + by_text.logsumexp(0) - by_text[1]) / 2
    assert torch.allclose(losses[1], wanted, atol=1e-12)
    (slope,) = torch.autograd.grad(losses.sum(), scale)
    assert slope.isfinite()


def test_captions_of_any_length_in_a_batch_give_the_same_features_and_gradients(make_run):
    built = build_objective(make_run(TINY, CAPTIONS))
    towers, player = built.towers.double(), built.players["clip"]
    captions = [f"{'red disc ' * k}".strip() for k in (3, 0, 20, 1, 9) * 9]
    ids = player.ids(captions)
    assert ids.shape[0] == 45 and ids.shape[1] < 77
    padded = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]), value=player.tokenizer.eos_token_id)
    ours, reference = towers.encode_text(ids), towers.model.encode_text(padded)
    assert (ours - reference).abs().max() < 1e-12
    parameters = list(towers.model.text.parameters())
    weights = torch.randn(16, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((ours @ weights).square().sum(), parameters),
        torch.autograd.grad((reference @ weights).square().sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-10)


def test_a_long_caption_keeps_its_end_token(make_run):
    player = build_objective(make_run(TINY, CAPTIONS)).players["clip"]
    ids = player.ids(["disc " * 200, "a"])
    assert ids.shape == (2, 77) and ids[0, -1] == ids[1, -1] == player.tokenizer.eos_token_id


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_finds_the_pairs_and_exports_a_text_encoder(make_run, tmp_path, precision):
    from latent_diffusion.checkpoint.folder.clip_folder import load_clip
    from latent_diffusion.checkpoint.folder.text_folder import load_text_encoder

    run = make_run(
        {**TINY, "text": {**TINY["text"], "layers": 1}}, CAPTIONS, steps=40, precision=precision, log_every=1,
        optimizer={"learning_rate": 3e-3, "weight_decay": 0.0}, ema={"decay": 0.5},
    )  # fmt: skip
    assert train(run) == 0
    lines = losses_of(Path(run.output))
    key = next(name for name in lines[0] if name.endswith("loss"))
    assert lines[0][key] > 0.8 * math.log(4) and lines[-1][key] < 0.5 * math.log(4)
    folder = tmp_path / "run" / "model"
    clip, encoder = load_clip(folder), load_text_encoder(folder)
    names = ("red", "green", "blue", "orange")
    data = build_objective(run).data
    images = torch.stack([data.image(row) for row in range(4)]) / 127.5 - 1
    scores = clip.image_features(images) @ clip.text_features([f"a {name} disc" for name in names]).T
    assert (scores.argmax(dim=1) == torch.arange(4)).sum() >= 3
    assert encoder(["a red disc"]).context.shape == (1, 77, 32)


@pytest.mark.parametrize(
    ("settings", "data", "values", "words"),
    [
        ({"patch_size": 7}, {}, {}, "patch_size"),
        ({"text": {"width": 30, "layers": 1, "heads": 4}}, {}, {}, "heads"),
        ({"vocab_size": 100}, {}, {}, "vocab_size"),
        ({}, {"captions": []}, {}, "captions"),
        ({}, {}, {"accumulation": 2}, "accumulation"),
    ],
)
def test_what_cannot_be_trained_is_refused(make_run, settings, data, values, words):
    with pytest.raises(ConfigError, match=words):
        run = make_run({**TINY, **settings}, {**CAPTIONS, **data}, **values)
        train(run)


def test_the_shipped_configuration_fits_its_budget():
    from latent_diffusion.models.clip import CLIPConfig, TowerConfig, TwoTowers
    from latent_diffusion.training.objectives.clip import CLIPObjective

    root = Path(__file__).parents[3]
    run = read_config(root / "configs" / "emoji" / "clip.yaml")
    settings = parse_section(
        CLIPObjective.settings_type, {k: v for k, v in run.objective.items() if k != "name"}, "objective"
    )
    parse_section(CLIPObjective.data_type, run.data, "data")
    text, vision = (TowerConfig(**tower.model_dump()) for tower in (settings.text, settings.vision))
    towers = TwoTowers(CLIPConfig(text, vision, settings.vocab_size, settings.embed_dim, 64, settings.patch_size))
    assert settings.text.width == 256
    assert sum(p.numel() for p in towers.model.text.parameters()) < 2.5e6
    assert sum(p.numel() for p in towers.model.visual.parameters()) < 2.5e6
