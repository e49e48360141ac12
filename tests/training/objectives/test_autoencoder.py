import pytest
import torch

from latent_diffusion.checkpoint.folder.diffusers_folder import load_autoencoder
from latent_diffusion.errors import ConfigError
from latent_diffusion.families import tiny
from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latent_diffusion.training.losses.adversarial import DRIFT, adaptive_weight, discriminator_loss, generator_loss
from latent_diffusion.training.networks.latent_scale import fold_latent_scale, latent_statistics
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

SIZES = {"block_out_channels": [8, 16, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8}
NOTHING = {"l1": 0.0, "mse": 0.0, "perceptual": 0.0, "kl": 0.0}


def objective(**settings) -> dict:
    return {"name": "autoencoder", "model": SIZES, **settings}


def trained(run, steps: int | None = None) -> Trainer:
    torch.manual_seed(run.seed)
    trainer = Trainer(build_objective(run), run, build_accelerator())
    trainer.fit()
    return trainer


@pytest.mark.parametrize(
    "term",
    [
        {"l1": 1.0},
        {"mse": 1.0},
        {"perceptual": 0.1},
        {"kl": 1.0},
        {"l1": 1e-9, "adversarial": {"start": 0, "width": 8}},
    ],
    ids=["l1", "mse", "perceptual", "kl", "adversarial"],
)
def test_each_term_alone_moves_the_encoder(make_run, term):
    run = make_run(objective(**{**NOTHING, **term}), {"captions": []}, steps=1, clip_norm=None)
    torch.manual_seed(0)
    built = build_objective(run)
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    Trainer(built, run, build_accelerator()).fit()
    moved = {name for name, p in built.model.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("encoder") for name in moved)
    assert any(name.startswith("decoder") for name in moved) or "kl" in term


def test_the_discriminator_waits_for_its_start_and_learns_then(make_run):
    run = make_run(
        objective(perceptual=0.0, equivariance=1.0, adversarial={"start": 2, "width": 8, "layers": 1}),
        {"captions": []},
        steps=4,
        accumulation=2,
        precision="bfloat16",
    )
    seen: dict[int, dict[str, float]] = {}

    class Watch:
        def after_backward(self, player, step):
            pass

        def after_update(self, trainer, figures):
            seen[trainer.done] = figures
            weights = [p.detach().clone() for p in trainer.players["discriminator"].parameters()]
            states.append(weights)

    states: list = []
    torch.manual_seed(0)
    trainer = Trainer(build_objective(run), run, build_accelerator())
    start = [p.detach().clone() for p in trainer.players["discriminator"].parameters()]
    trainer.fit([Watch()])
    assert all(torch.equal(a, b) for a, b in zip(start, states[1]))
    assert not any(torch.equal(a, b) for a, b in zip(start, states[3]))
    assert "discriminator/loss" not in seen[2] and seen[3]["generator/adaptive_weight"] > 0
    assert not trainer.players["generator"].made  # nothing is kept beyond the update


def test_hinge_losses():
    real, made = torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[-2.0, 1.0]]]])
    assert discriminator_loss(real, made).item() == pytest.approx(0.5 * (0.5 + 1.0) + DRIFT * 2.0)
    assert generator_loss(made).item() == pytest.approx(0.5)


def test_the_adaptive_weight_is_a_ratio_of_gradients_over_all_processes():
    last = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    def losses(rows):
        return (x[rows] * last).square().sum(1), (x[rows] * last).sum(1)

    def norm(loss):
        return torch.autograd.grad(loss.mean(), last, retain_graph=True)[0].norm()

    reconstruction, adversarial = losses(slice(0, 6))
    whole = adaptive_weight(reconstruction, adversarial, last, lambda t: t, largest=1e4)
    assert whole.item() == pytest.approx((norm(reconstruction) / (norm(adversarial) + 1e-4)).item(), rel=1e-5)
    parts: list = []
    for rows in (slice(0, 3), slice(3, 6)):
        adaptive_weight(*losses(rows), last, lambda t: parts.append(t) or t, largest=1e4)
    shared = adaptive_weight(*losses(slice(0, 3)), last, lambda t: parts[0] + parts[1], largest=1e4)
    assert shared.item() == pytest.approx(whole.item(), rel=1e-5)
    assert adaptive_weight(reconstruction, adversarial, last, lambda t: t, largest=0.5).item() == 0.5
    assert last.grad is None


def test_folding_the_latent_scale_changes_nothing_but_the_latents():
    torch.manual_seed(0)
    model = AutoencoderKL(AutoencoderConfig(**{**SIZES, "scaling_factor": 0.3})).eval()
    with torch.no_grad():
        model.quant_conv.bias[:4] += torch.tensor([3.0, -1.0, 0.0, 8.0])
        model.quant_conv.weight[:4] *= 5
    images = torch.rand(12, 3, 32, 32) * 2 - 1
    mean, std = latent_statistics(model, images.split(5))
    folded = fold_latent_scale(model, mean, std)
    with torch.no_grad():
        old, new = model.encode(images), folded.encode(images)
        noise = torch.randn_like(old.mean)
        assert torch.allclose(model.decode(old.sample(noise)), folded.decode(new.sample(noise)), atol=1e-5)
        again = latent_statistics(folded, images.split(12))
        assert torch.allclose(again[0], torch.zeros(4, dtype=torch.float64), atol=1e-5)
        assert torch.allclose(again[1], torch.ones(4, dtype=torch.float64), atol=1e-5)
        assert torch.allclose(folded.to_images(folded.to_latents(images)), model.decode(old.mean), atol=1e-5)
    assert folded.config.scaling_factor == 1.0
    without = AutoencoderKL(AutoencoderConfig(**{**SIZES, "use_quant_conv": False}))
    with pytest.raises(ConfigError, match="quant_conv"):
        fold_latent_scale(without, mean, std)


def test_the_export_is_the_averaged_model_and_diffusers_agrees(make_run, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    settings = objective(adversarial={"start": 1, "width": 8}, equivariance=0.5, validation={"split": "val"})
    run = make_run(settings, {"captions": [], "flip": True}, ema={"decay": 0.5}, sample={"every": 2})
    assert train(run) == 0
    folder = tmp_path / "run" / "model" / "vae"
    ours, theirs = load_autoencoder(folder), diffusers.AutoencoderKL.from_pretrained(str(folder)).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        posterior, reference = ours.encode(images), theirs.encode(images).latent_dist
        assert torch.allclose(posterior.mean, reference.mean, atol=1e-5)
        assert torch.allclose(posterior.logvar, reference.logvar, atol=1e-4)
        assert torch.allclose(ours.decode(posterior.mean), theirs.decode(reference.mean).sample, atol=1e-5)
    assert list((tmp_path / "run" / "samples").glob("*.png"))


def test_equal_runs_are_equal_and_the_posterior_noise_is_fresh(make_run):
    run = make_run(objective(perceptual=0.0), {"captions": []}, steps=2)
    one, two = trained(run), trained(run)
    for a, b in zip(one.players["generator"].parameters(), two.players["generator"].parameters()):
        assert torch.equal(a, b)


def test_settings_that_cannot_be(make_run):
    for bad, words in (
        ({"name": "autoencoder"}, "either `model`"),
        (objective(init="somewhere"), "either `model`"),
        ({"name": "autoencoder", "model": {**SIZES, "latent_chanels": 3}}, "did you mean 'latent_channels'"),
        ({"name": "autoencoder", "model": {"layers_per_block": 1}}, r"objective\.model"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_objective(make_run(bad, {"captions": []}))
    with pytest.raises(ConfigError, match="not a multiple of the autoencoder's 4 px"):
        build_objective(make_run(objective(perceptual=0.0), {"captions": [], "size": 30}))
    assert tiny.AUTOENCODER.latent_channels == 4


def test_the_decoder_alone_is_trained_and_latents_stay(tiny_family, make_run, tmp_path):
    folder = tiny_family("sd1")  # a model; its autoencoder lies in vae/
    section = {"name": "autoencoder", "init": str(folder), "train": "decoder", "perceptual": 0.0, "equivariance": 0.5}
    section["adversarial"] = {"start": 2, "width": 8, "layers": 1}
    assert train(make_run(section, {"captions": []}, steps=6)) == 0
    before, after = load_autoencoder(folder / "vae"), load_autoencoder(tmp_path / "run" / "model" / "vae")
    assert after.config == before.config
    old, new = before.state_dict(), after.state_dict()
    same = {name for name in old if torch.equal(old[name], new[name])}
    assert same == {name for name in old if name.startswith(("encoder.", "quant_conv."))}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": SIZES}, "needs `init`"),
        ({"init": "x", "kl": 1e-6}, "leave `kl` out"),
        ({"init": "x", "scale_pictures": 64}, "leave `scale_pictures` out"),
    ],
)
def test_settings_without_effect_on_a_decoder_are_refused(make_run, settings, words):
    with pytest.raises(ConfigError, match=words):
        build_objective(make_run({"name": "autoencoder", "train": "decoder", **settings}, {"captions": []}))
