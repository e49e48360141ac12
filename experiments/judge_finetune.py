"""Has fine-tuning taught a style? Draw its held-out concepts before and after, and ask whose style they are in.

    python -m experiments.judge_finetune emoji runs/finetune/model assets/iconpark.zip assets/emoji-128.zip OUTPUT

The style rule of `latent-diffusion evaluate` is fitted with the new style beside those of the reference pictures.
Writes OUTPUT.json and OUTPUT.png: for each test concept the real picture, one drawn before, one drawn after.
"""

import json
import sys
from pathlib import Path

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.data.images import to_pil
from latent_diffusion.evaluation.drawn import draw
from latent_diffusion.evaluation.features import Features, extract
from latent_diffusion.evaluation.gallery import COPIES, features_of
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import read_pictures
from latent_diffusion.evaluation.pipeline_examined import examine_pipeline
from latent_diffusion.evaluation.retrieval import Retrieval
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0

PER_PROMPT = 2


def main(before: str, after: str, data: str, reference: str, output: str) -> None:
    network = load_efficientnet_lite0()
    sets = [read_pictures(reference), read_pictures(data)]
    features = Features.cat(features_of(network, pictures, pictures.rows) for pictures in sets)
    copied = [[row for row in pictures.rows if row.split == "train"][:COPIES] for pictures in sets]
    copies = Features.cat(features_of(network, p, rows, how="64 px") for p, rows in zip(sets, copied, strict=True))
    styles = [row.style for rows in copied for row in rows]
    retrieval = Retrieval([row for p in sets for row in p.rows], features, copies, styles)

    asked = [row for row in sets[1].rows if row.split == "test"]
    real = sets[1].load(asked, 64)
    drawn, result = [], {"concepts": len(asked), "pictures": len(asked) * PER_PROMPT}
    result["real"] = retrieval.search(extract(network, real), asked).shares()
    for name, model in (("before", before), ("after", after)):
        examined = examine_pipeline(LatentDiffusionPipeline.from_pretrained(model), model)
        pictures = draw(examined.generate, asked, PER_PROMPT, seed=0, batch_size=20).images
        queries = [row for row in asked for _ in range(PER_PROMPT)]
        result[name] = retrieval.search(extract(network, pictures), queries).shares()
        drawn.append(to_pil(pictures[::PER_PROMPT]))
    columns = [
        Column(row.text.removeprefix("a blue outline icon of "), picture, pair)
        for row, picture, pair in zip(asked, to_pil(real), zip(*drawn, strict=True), strict=True)
    ]
    draw_grid(columns, per_row=17, cell=64).save(f"{output}.png")
    Path(f"{output}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:6])
