"""Two processes train every form of adapter as one does; all forms in one launch, which takes longer than they do."""

import pytest
import real
from processes import train_together

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors

BOTH, ALL = ["unet", "text_encoder"], ["unet", "text_encoder", "text_encoder_2"]
FORMS = {
    "LoRA": {"rank": 3, "layers": "all", "parts": BOTH},
    "rsLoRA": {"rank": 4, "alpha": 3, "rank_stabilised": True, "parts": BOTH},
    "DoRA": {"rank": 3, "dora": True, "parts": BOTH},
    "LoHa": {"form": "loha", "rank": 2, "parts": BOTH},
    "LoKr": {"form": "lokr", "rank": 2, "parts": BOTH},
    "SDXL": {"rank": 2, "parts": ALL},
}


@pytest.mark.slow
def test_two_processes_train_every_form_as_one_does(tiny_family, make_run, tmp_path):
    kinds = [(form, "float64", 1e-9) for form in FORMS] + [("LoRA", "float32", 1e-5)]
    runs = []
    for form, precision, _ in kinds:
        folder = tiny_family("sdxl" if form == "SDXL" else "sd1")
        objective = {"name": "lora", "init": str(folder), "adapter": FORMS[form]}
        data = {"captions": ["text", "text_alt"], "caption_dropout": 0.3, "flip": True}
        rate = {"learning_rate": 1e-3}
        runs.append(make_run(objective, data, precision=precision, optimizer=rate).model_dump_json())
    assert real.fit_each(tmp_path / "one", *runs) == 0
    assert train_together(tmp_path / "two", *runs, run=real.fit_each) == [0, 0], (tmp_path / "two.err0").read_text()
    for number, (form, precision, relative) in enumerate(kinds):
        one, two = (read_tensors(tmp_path / name / f"{number}.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys() and any(name.startswith("text_encoder") for name in one)
        # in float32 only the losses: AdamW enlarges what rounding leaves of the smallest gradients
        for name in one if precision == "float64" else ["losses"]:
            assert (two[name] - one[name]).norm() <= relative * max(1, float(one[name].norm())), (form, name)
