"""Each form against its formula written out densely, entry by entry, for linear layers and convolutions."""

import pytest
import torch

from latent_diffusion.adapters.forms import update_of
from latent_diffusion.errors import CheckpointError

OUT, IN, K, R = 6, 4, 3, 2
LINEAR, CONV = torch.Size((OUT, IN)), torch.Size((OUT, IN, K, K))
ALPHA = 3.0


def rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) * 31 + len(shape)))


def change(fields, shape, scale=lambda rank: 1.0):
    """The change of a random weight, in the weight's shape."""
    weight = rand(*shape)
    update = update_of(fields, weight, torch.zeros(OUT), scale)
    return update.form, update.weight.matrix(weight.flatten(1)).reshape(shape)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_lora_is_up_times_down(shape):
    down, up = rand(R, *shape[1:]), rand(OUT, R, *[1] * (len(shape) - 2))
    form, found = change({"down": down, "up": up, "alpha": torch.tensor(ALPHA)}, shape)
    assert form == "LoRA"
    if len(shape) == 2:
        wanted = ALPHA / R * up @ down
    else:  # as the network would do it: two convolutions in a row
        x = rand(1, IN, 5, 5)
        two = torch.conv2d(torch.conv2d(x, down), up) * ALPHA / R
        torch.testing.assert_close(torch.conv2d(x, found), two, rtol=1e-5, atol=1e-5)
        wanted = ALPHA / R * torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_tucker_lora_is_three_convolutions_in_a_row():
    down, mid, up = rand(R, IN, 1, 1), rand(R + 1, R, K, K), rand(OUT, R + 1, 1, 1)
    _, found = change({"down": down, "mid": mid, "up": up, "alpha": torch.tensor(ALPHA)}, CONV)
    x = rand(1, IN, 5, 5)
    three = torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid), up) * ALPHA / R
    torch.testing.assert_close(torch.conv2d(x, found), three, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_loha_is_an_entrywise_product(shape):
    columns = shape[1:].numel()
    a1, b1, a2, b2 = rand(OUT, R), rand(R, columns), rand(OUT, R) + 1, rand(R, columns) - 1
    fields = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(ALPHA)}
    form, found = change(fields, shape)
    assert form == "LoHa"
    wanted = (ALPHA / R * (a1 @ b1) * (a2 @ b2)).reshape(shape)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_loha_with_cores():
    fields = {"alpha": torch.tensor(ALPHA)}
    wanted = torch.full(CONV, ALPHA / R)
    for n in "12":
        core, left, right = rand(R, R, K, K) + int(n), rand(R, OUT) - int(n), rand(R, IN)
        fields |= {f"hada_t{n}": core, f"hada_w{n}_a": left, f"hada_w{n}_b": right}
        wanted = wanted * torch.einsum("abkl,ao,bi->oikl", core, left, right)
    torch.testing.assert_close(change(fields, CONV)[1], wanted, rtol=1e-5, atol=1e-5)


def kronecker(first, second):
    """kron(first (a, b), second (c, d, ...)), entry by entry."""
    (a, b), (c, d) = first.shape, second.shape[:2]
    out = torch.empty(a * c, b * d, *second.shape[2:])
    for i in range(a):
        for j in range(b):
            out[i * c : (i + 1) * c, j * d : (j + 1) * d] = first[i, j] * second
    return out


@pytest.mark.parametrize("kernel", [(), (K, K)])
@pytest.mark.parametrize("first_whole", [True, False])
@pytest.mark.parametrize("second", ["whole", "factors", "core"])
def test_lokr_is_a_kronecker_product(kernel, first_whole, second):
    shape = torch.Size((OUT, IN, *kernel))
    if second == "core" and not kernel:
        pytest.skip("a linear layer has no core")
    fields = {"alpha": torch.tensor(ALPHA)}
    w1 = rand(2, 2)
    if first_whole:
        fields["lokr_w1"] = w1
    else:
        fields |= {"lokr_w1_a": rand(2, 1), "lokr_w1_b": rand(1, 2) + 1}
        w1 = fields["lokr_w1_a"] @ fields["lokr_w1_b"]
    if second == "whole":
        w2 = fields["lokr_w2"] = rand(3, 2, *kernel)
    elif second == "factors":
        fields |= {"lokr_w2_a": rand(3, 1), "lokr_w2_b": rand(1, 2 * max(1, K**2 if kernel else 1))}
        w2 = (fields["lokr_w2_a"] @ fields["lokr_w2_b"]).reshape(3, 2, *kernel)
    else:
        fields |= {"lokr_t2": rand(1, 1, K, K), "lokr_w2_a": rand(1, 3), "lokr_w2_b": rand(1, 2)}
        w2 = torch.einsum("abkl,ao,bi->oikl", fields["lokr_t2"], fields["lokr_w2_a"], fields["lokr_w2_b"])
    form, found = change(fields, shape)
    scale = 1.0 if first_whole and second == "whole" else ALPHA  # of rank 1
    assert form == "LoKr"
    torch.testing.assert_close(found, scale * kronecker(w1, w2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
@pytest.mark.parametrize("by_input", [False, True])
def test_dora_sets_the_lengths_of_the_changed_weight(shape, by_input):
    down, up = rand(R, *shape[1:]), rand(OUT, R, *[1] * (len(shape) - 2))
    ones = [1] * (len(shape) - 2)
    length = (rand(1, IN, *ones) if by_input else rand(OUT, 1, *ones)).abs() + 0.5
    form, found = change({"down": down, "up": up, "dora_scale": length}, shape)
    weight = rand(*shape)
    turned = weight + (up.flatten(1) @ down.flatten(1)).reshape(shape)
    over = (0, *range(2, len(shape))) if by_input else tuple(range(1, len(shape)))
    wanted = length * turned / torch.linalg.vector_norm(turned, dim=over, keepdim=True)
    assert form == "DoRA LoRA"
    torch.testing.assert_close(found, wanted - weight, rtol=1e-5, atol=1e-5)
    lengths = torch.linalg.vector_norm(weight + found, dim=over)
    torch.testing.assert_close(lengths, length.flatten(), rtol=1e-5, atol=1e-5)


def test_a_full_change_is_itself():
    weight, bias = rand(OUT, IN, K, K), rand(OUT)
    update = update_of({"diff": weight, "diff_b": bias}, weight, bias, lambda rank: 1.0)
    assert torch.equal(update.weight.matrix(torch.zeros(OUT, IN * K * K)).reshape(CONV), weight)
    assert update.bias is bias


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"down": rand(R, IN)}, "no up"),
        ({"down": rand(R, IN), "up": rand(OUT, R + 1)}, "multiplied"),
        ({"down": rand(R, IN + 1), "up": rand(OUT, R)}, "the model's weight"),
        ({"down": rand(R, IN) / 0, "up": rand(OUT, R)}, "finite"),
        ({"down": rand(R), "up": rand(OUT, R)}, "matrix"),
        ({"hada_w1_a": rand(OUT, R)}, "no hada_w1_b"),
        ({"lokr_w1": rand(2, 2)}, "no lokr_w2_a"),
        ({"lokr_w1": rand(2, 2), "lokr_w2": rand(2, 2)}, "the model's weight"),
        ({"alpha": torch.tensor(1.0)}, "without the other factors"),
        ({"diff_b": rand(OUT + 1)}, "the bias has 7 numbers"),
        ({"down": rand(R, IN), "up": rand(OUT, R), "alpha": rand(2)}, "alpha"),
        ({"down": rand(R, IN), "up": rand(OUT, R), "magnitude": rand(OUT + 1)}, "lengths"),
    ],
)
def test_a_change_that_does_not_fit_is_an_error_that_says_why(fields, words):
    with pytest.raises(CheckpointError, match=words):
        update_of(fields, rand(OUT, IN), rand(OUT), lambda rank: 1.0)
