"""Updates against a loop of diffusers', PEFT's and torch's public classes, with the same data and draws."""

import pytest
import torch

from latent_diffusion.config import RunConfig
from latent_diffusion.randomness import normal
from latent_diffusion.training.numbers import sample_numbers
from latent_diffusion.training.optimizer import optimizer_settings
from latent_diffusion.training.run import build_objective
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

diffusers = pytest.importorskip("diffusers")

RATE, TEXT_RATE = 1e-3, 1e-4
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ADAPTER = {"rank": 4, "alpha": 8, "layers": "attention"}
TRAIN = {"parts": ["unet", "text_encoder"], "rules": [{"match": "^text_encoder", "learning_rate": TEXT_RATE}]}
KINDS = {
    "LoRA": ("sd1", {"name": "lora", "adapter": ADAPTER}),
    "whole U-Net with v": ("sd2_v", {"name": "unet"}),
    "SDXL LoRA": ("sdxl", {"name": "lora", "adapter": ADAPTER}),
    "U-Net with text encoder": ("sd1", {"name": "unet", "train": TRAIN}),
}


class Losses:
    """Notes the loss of every update."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_backward(self, player: str, step: int) -> None:
        pass

    def after_update(self, trainer: Trainer, figures: dict[str, float]) -> None:
        self.values.append(figures["unet/loss"])


FIFTY = [pytest.param(kind, 50, marks=pytest.mark.slow) for kind in ("LoRA", "whole U-Net with v")]
FEW = [(kind, 12) for kind in ("SDXL LoRA", "U-Net with text encoder")]  # they contain the others


@pytest.mark.parametrize(("kind", "updates"), [*FIFTY, *FEW])
def test_losses_are_those_of_a_loop_of_diffusers_and_peft(tiny_family, pictures, tmp_path, kind, updates):
    pytest.importorskip("peft")
    family, objective = KINDS[kind]
    folder = str(tiny_family(family))
    run = RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"), "steps": updates, "batch_size": 2, "threads": 1, "precision": "float64",
            "optimizer": {"learning_rate": RATE, "weight_decay": 0.01}, "clip_norm": 1.0, "fast": False,
            "objective": {**objective, "init": folder},
            "data": {"path": str(pictures), "size": 32, "captions": ["text"], "caption_dropout": 0.25, "flip": True},
        }
    )  # fmt: skip
    torch.manual_seed(run.seed)
    trainer = Trainer(build_objective(run), run, build_accelerator())
    theirs = Reference(folder, trainer, run)  # takes the first factors before they move
    wanted = theirs.losses()
    seen = Losses()
    trainer.fit([seen])
    assert len(seen.values) == len(wanted) == updates
    assert seen.values == pytest.approx(wanted, rel=1e-5)
    assert len({round(loss, 6) for loss in wanted}) == updates


class Reference:
    """Training as the examples of diffusers write it."""

    def __init__(self, folder: str, trainer: Trainer, run: RunConfig) -> None:
        self.trainer, self.run = trainer, run
        self.pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        self.noising = diffusers.DDPMScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.vae.double().requires_grad_(False)
        self.unet = self.pipe.unet.double()
        for name in ("text_encoder", "text_encoder_2"):
            if getattr(self.pipe, name, None) is not None:
                getattr(self.pipe, name).requires_grad_(False)
        self.live = run.objective.get("train") is not None
        if run.objective["name"] == "lora":
            self.add_adapter()
        else:
            self.unet.requires_grad_(True).train()
        groups = self.groups(self.unet, RATE)
        if self.live:
            groups += self.groups(self.pipe.text_encoder.double().requires_grad_(True), TEXT_RATE)
        settings = optimizer_settings(run)
        self.optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)

    def add_adapter(self) -> None:
        """Put PEFT's LoRA on the attentions, with the first factors of ours."""
        from peft import LoraConfig

        self.unet.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION))
        changes = self.trainer.objective.adapter.changes["unet"]
        for path, change in changes.items():
            layer = self.unet.get_submodule(path)
            layer.lora_A["default"].weight.data.copy_(change.down)
            layer.lora_B["default"].weight.data.copy_(change.up)
        self.unet.double()

    @staticmethod
    def groups(module, rate: float) -> list[dict]:
        """Return weights with decay and without."""
        trained = [p for p in module.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim >= 2], "lr": rate, "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim < 2], "lr": rate, "weight_decay": 0.0},
        ]

    def losses(self) -> list[float]:
        objective, found = self.trainer.objective, []
        numbers = sample_numbers(self.run, start=0, rank=0, processes=1)
        for _, batch in zip(range(self.run.steps), self.batches(objective, numbers)):
            noise = normal(self.run.seed, "noise", batch.sample, (4, 8, 8)).double()
            t = objective.player.times(batch.sample)
            with torch.no_grad():
                posterior = self.pipe.vae.encode(batch.images.double()).latent_dist
                drawn = normal(self.run.seed, "posterior", batch.sample, (4, 8, 8)).double()
                x0 = (posterior.mean + posterior.std * drawn) * self.pipe.vae.config.scaling_factor
            x = self.noising.add_noise(x0, noise, t)
            output = self.unet(x, t, **self.condition(batch)).sample
            v = self.noising.config.prediction_type == "v_prediction"
            target = self.noising.get_velocity(x0, noise, t) if v else noise
            loss = torch.nn.functional.mse_loss(output, target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            found.append(loss.item())
        return found

    @staticmethod
    def batches(objective, numbers):
        """Yield the same samples with their pixels."""
        from latent_diffusion.data.batches.loader import batches

        return batches(objective.data, numbers, 0)

    def condition(self, batch) -> dict:
        """Return what diffusers' U-Net reads beside latents and times."""
        texts = list(batch.captions)
        if not hasattr(self.pipe, "text_encoder_2"):
            with torch.set_grad_enabled(self.live):
                ids = self.pipe.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
                return {"encoder_hidden_states": self.pipe.text_encoder(ids)[0].double()}
        with torch.no_grad():
            states, _, pooled, _ = self.pipe.encode_prompt(texts, do_classifier_free_guidance=False)
        kept = torch.tensor([bool(text) for text in texts], dtype=torch.float64)
        added = {"text_embeds": pooled.double() * kept[:, None], "time_ids": batch.size_ids}
        return {"encoder_hidden_states": states.double() * kept[:, None, None], "added_cond_kwargs": added}
