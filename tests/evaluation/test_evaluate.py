import json

import pytest
import torch

from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.errors import CheckpointError, ConfigError, DataError
from latent_diffusion.evaluation.caption_bits import LatentLikelihood
from latent_diffusion.evaluation.clip_score import clip_score
from latent_diffusion.evaluation.evaluate import Examined, Settings, evaluate
from latent_diffusion.evaluation.gallery import build_gallery
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import read_pictures, select
from latent_diffusion.evaluation.projection import Discriminant, Whitening
from latent_diffusion.evaluation.reconstruction import psnr
from latent_diffusion.evaluation.reference import reference_rows
from latent_diffusion.evaluation.report_file import FIGURES, check, figures, report_to_dict, write_report
from latent_diffusion.evaluation.trained_on import parse_filters, read_trained_on


def test_whitened_data_is_white():
    x = torch.randn(400, 6) @ torch.randn(6, 6) + 3
    white = Whitening.fit(x, 4)(x)
    assert white.shape == (400, 4)
    torch.testing.assert_close(white.T @ white / 399, torch.eye(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)


def test_whitening_survives_constant_and_few_features():
    x = torch.cat([torch.randn(5, 3), torch.ones(5, 2)], dim=1)
    assert Whitening.fit(x, 64)(x).isfinite().all()


def test_discriminant_uses_the_covariance():
    # Classes differ along a direction of little variance; a nearest mean would be right only half of the time.
    noise = torch.randn(600, 2) * torch.tensor([10.0, 0.1])
    labels = torch.arange(600) % 2
    x = noise + labels[:, None] * torch.tensor([1.0, 1.0])
    assert (Discriminant.fit(x, labels, 2)(x) == labels).float().mean() > 0.99


def test_psnr_is_the_textbook_one():
    reference = torch.zeros(1, 3, 8, 8) + 1 / 255
    assert psnr(reference + 2 / 255 * 10, reference).item() == pytest.approx(20 * torch.tensor(25.5).log10().item())
    assert psnr(reference, reference).item() > 90


def test_reference_rows_rank_as_they_must(network, folder):
    gallery = build_gallery(network, read_pictures(folder))
    asked = select(gallery.pictures.rows, {"split": ["test_comp"]})
    rows = {row.what: row.scores for row in reference_rows(network, gallery, asked)}
    assert rows["the real picture"] == pytest.approx({"name1": 1, "name5": 1, "style": 1, "joint1": 1})
    assert rows["real, 64 px"]["name1"] == 1
    for style in ("filled", "outline"):
        assert rows[f"copied from {style}"]["style"] == 0
        assert rows[f"copied from {style}"]["joint1"] < 0.5
    assert rows["random, right style"]["name1"] == 0
    assert rows["random, right style"]["style"] == 1


def test_a_family_absent_from_a_style_is_not_found(network, folder):
    gallery = build_gallery(network, read_pictures(folder))
    stranger = gallery.pictures.rows[0]
    gone = [row for row in gallery.retrieval.searched if (row.style, row.family) == (stranger.style, stranger.family)]
    kept = [k for k, row in enumerate(gallery.pictures.rows) if row not in gone]
    rows = [gallery.pictures.rows[k] for k in kept]
    fewer = type(gallery.retrieval)(rows, gallery.features[kept], gallery.features[kept], [row.style for row in rows])
    hits = fewer.search(gallery.features_of([stranger]), [stranger])
    assert not hits.name1.any()
    assert not hits.name5.any()


class Painter:
    """Draws the real picture of a prompt, or (`lazy`) always the first."""

    def __init__(self, pictures, size, lazy=False):
        self.known = {row.text: row for row in reversed(pictures.rows)}
        self.pictures, self.size, self.lazy, self.seeds = pictures, size, lazy, []

    def __call__(self, prompts, seeds):
        self.seeds += seeds
        rows = [self.pictures.rows[0] if self.lazy else self.known[prompt] for prompt in prompts]
        return self.pictures.load(rows, self.size)


class Words:
    """A CLIP for which a picture and a text fit when the text is the one it was told."""

    def image_features(self, images):
        return torch.stack([images.mean(dim=(1, 2, 3)) + 2, torch.ones(len(images))], dim=1)

    def text_features(self, texts):
        return torch.ones(len(texts), 2)


def told_bits(images, prompts, numbers):
    """300 bits without a caption; each word of a caption explains 10."""
    return 300.0 - 10.0 * torch.tensor([len(prompt.split()) for prompt in prompts])


def examine(network, folder, *, lazy=False, **settings):
    pictures = read_pictures(folder)
    painter = Painter(pictures, 64, lazy)
    model = Examined("painter", 64, painter, lambda images: images + 0.01, Words(), LatentLikelihood(100, told_bits))
    return painter, evaluate(model, pictures, network, Settings(**settings))


def test_a_perfect_model_is_found_perfect(network, folder, tmp_path):
    painter, report = examine(
        network, folder, prompts=6, images_per_prompt=2, seed=5, batch_size=4, grid=3, likelihood=4
    )
    assert (report.seen.prompts, report.seen.pictures) == (6, 12)
    assert painter.seeds[:12] == list(range(5, 17))
    assert report.unseen.prompts == 8
    for score in (report.seen, report.unseen):
        assert score.scores["name1"] == score.scores["style"] == 1
        assert score.clip > 90
    assert report.reconstruction.pictures == 8
    assert report.reconstruction.psnr > 40
    assert abs(report.reconstruction.rkid) < 10
    found = figures(report)
    assert check(found, {"seen.name1": 0.3, "reconstruction.psnr": 27}) == []
    assert len(check(found, {"seen.name1": 1.1})) == 1
    assert set(found) == set(FIGURES)
    assert report.seen_likelihood.pictures == report.unseen_likelihood.pictures == 4
    assert report.seen_likelihood.explained == pytest.approx(50.0) and report.seen_likelihood.empty == 3.0
    assert check({}, {"seen.name1": 0.3}) == ["seen.name1 was not measured"]
    files = write_report(report, {"seed": 5}, tmp_path / "result")
    assert [file.name for file in files] == ["evaluation.json", "seen.png", "unseen.png", "nearest.png"]
    assert json.loads(files[0].read_text())["seen"]["scores"]["name1"] == 1
    assert report_to_dict(report, {})["references"]


def test_a_model_that_ignores_the_prompt_is_found_out(network, folder):
    _, report = examine(network, folder, lazy=True, prompts=16, images_per_prompt=1)
    assert report.seen.scores["name1"] < 0.4
    assert report.seen.kid > 50


def test_only_what_the_model_was_trained_on_is_asked(network, folder):
    where = {"where": {"style": ["filled"]}, "where_not": {"family": ["disc"]}}
    _, report = examine(network, folder, limit=3, images_per_prompt=1, **where)
    assert report.seen.prompts == report.unseen.prompts == 3
    with pytest.raises(ConfigError, match="did you mean 'filled'"):
        examine(network, folder, where={"style": ["filed"]})
    with pytest.raises(DataError, match="no picture"):
        examine(network, folder, where={"family": ["disc"]}, where_not={"family": ["disc"]})


def test_data_without_concepts_is_judged_without_retrieval(network, folder):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()[:6]]
    plain = [{"file_name": row["file_name"], "text": row["text"]} for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, plain)))
    _, report = examine(network, folder, images_per_prompt=1)
    assert report.seen.scores == {}
    assert report.seen.kid is not None
    assert report.unseen is None
    assert report.references == []


def test_clip_score_is_the_mean_cosine():
    assert clip_score(Words(), torch.zeros(3, 3, 8, 8) - 1, ["a", "b", "c"]) == pytest.approx(100)


def test_the_training_record_is_read(tmp_path):
    assert read_trained_on(tmp_path).where == {}
    data = {"path": "x.zip", "where": {"style": "noto", "split": "train"}, "where_not": {}}
    (tmp_path / "training.json").write_text(json.dumps({"config": {"data": data}}))
    assert read_trained_on(tmp_path).where == {"style": ["noto"]}
    (tmp_path / "training.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"training\.json"):
        read_trained_on(tmp_path)


def test_filters_on_the_command_line():
    assert parse_filters(["style=noto, fluent-3d", "group=objects", "style=x"]) == {
        "style": ["noto", "fluent-3d", "x"],
        "group": ["objects"],
    }
    with pytest.raises(ConfigError, match="field=value"):
        parse_filters(["style"])


def test_sheet_has_a_column_for_each_prompt(drawings):
    real, drawn = to_pil(drawings[0][:2])
    columns = [Column("a very long label of many words indeed", real, [drawn, drawn])] * 5
    sheet = draw_grid(columns, per_row=4, cell=32)
    assert sheet.width == 4 * 38 + 6
    assert sheet.height == 2 * draw_grid([Column("a", None, [drawn, drawn])], cell=32).height
