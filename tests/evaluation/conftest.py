import json

import pytest
import torch

from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0


@pytest.fixture(scope="session")
def network():
    return load_efficientnet_lite0()


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


STYLES = {"filled": 0.0, "outline": 1.0}
SHAPES = ("disc", "square", "cross", "bar", "ring", "frame", "triangle", "corner")


def draw_shape(shape, style, shift):
    """One black shape on white, (3, 128, 128) in [-1, 1]: filled, or outlined in blue."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    x, y = x - shift, y + shift
    distance = {
        "disc": (x.square() + y.square()).sqrt() - 0.6,
        "square": torch.maximum(x.abs(), y.abs()) - 0.55,
        "cross": torch.minimum(
            torch.maximum(x.abs() - 0.2, y.abs() - 0.7), torch.maximum(y.abs() - 0.2, x.abs() - 0.7)
        ),
        "bar": torch.maximum(x.abs() - 0.8, y.abs() - 0.15),
        "ring": ((x.square() + y.square()).sqrt() - 0.5).abs() - 0.12,
        "frame": (torch.maximum(x.abs(), y.abs()) - 0.5).abs() - 0.12,
        "triangle": torch.maximum(y - 0.5, x.abs() * 1.6 - y * 0.8 - 0.5),
        "corner": torch.maximum(torch.maximum(x.abs(), y.abs()) - 0.6, -torch.maximum(-x, y)),
    }[shape]
    if style == "filled":
        return torch.where(distance < 0, -0.9, 1.0).expand(3, -1, -1)
    line = (distance.abs() < 0.06).float()
    return torch.stack([1 - 1.8 * line, 1 - 1.2 * line, torch.ones_like(line)])


@pytest.fixture(scope="session")
def drawings():
    """48 drawings and (shape, style) of each: eight shapes in two styles, three places each."""
    labels = [(shape, style, shift) for shape in SHAPES for style in STYLES for shift in (-0.1, 0.0, 0.1)]
    return torch.stack([draw_shape(*label) for label in labels]), [label[:2] for label in labels]


@pytest.fixture
def folder(tmp_path, drawings):
    """An image folder of the drawings; one place of each (shape, style) in turn is held out."""
    images, labels = drawings
    rows = []
    for number, (picture, (shape, style)) in enumerate(zip(to_pil(images), labels, strict=True)):
        place = number % 3
        (tmp_path / style / str(place)).mkdir(parents=True, exist_ok=True)
        name = f"{style}/{place}/{shape}.png"
        picture.save(tmp_path / name)
        held_out = place == 0 and SHAPES.index(shape) % 2 == list(STYLES).index(style)
        split = "test_comp" if held_out else "train"
        text = f"{style} drawing of a {shape}"
        row = {"file_name": name, "text": text, "style": style, "family": shape, "group": "shapes", "split": split}
        rows.append(row)
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path
