"""Prompts of other tools: read as they read them, and written so that they mean the same here."""

import random

import pytest

from latent_diffusion.prompts.other_languages import LANGUAGES, from_comfyui, from_compel, from_novelai, written
from latent_diffusion.prompts.schedule import texts_by_step
from latent_diffusion.prompts.syntax import parse_attention
from latent_diffusion.prompts.terms import split_terms, take_adapters


def read_here(prompt):
    """Return the spans of a prompt that has no adapters, no second term, no schedule and one chunk."""
    words, tags = take_adapters(prompt)
    (term,) = split_terms(words)
    (text,) = set(texts_by_step(term.text, 4))
    (part,) = parse_attention(text)
    assert not tags
    return [(span.text, round(span.weight, 4)) for span in part]


def joined(stretches):
    """Return the same stretches, neighbours of one weight joined."""
    found = []
    for text, weight in stretches:
        if found and found[-1][1] == round(weight, 4):
            found[-1] = (found[-1][0] + text, round(weight, 4))
        elif text:
            found.append((text, round(weight, 4)))
    return found


@pytest.mark.parametrize(
    ("prompt", "stretches"),
    [
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((red))", [("red", 1.21)]),
        ("((red:1.4) cat)", [("red", 1.4), (" cat", 1.1)]),  # a number is not multiplied by the brackets around it
        (r"a \(red\) cat", [("a (red) cat", 1)]),
        ("[red] AND [a:b:0.5] BREAK <lora:ink:1>", [("[red] AND [a:b:0.5] BREAK <lora:ink:1>", 1)]),
        ("a:1.2) and (b", [("a:1.2) and (b", 1)]),
        ("(a:b:1.3)", [("a:b", 1.3)]),
    ],
)  # fmt: skip
def test_comfyui_reads_round_brackets_and_weights_alone(prompt, stretches):
    """Right values: comfy/sd1_clip.py, `token_weights`."""
    assert joined(from_comfyui(prompt)) == stretches
    assert read_here(written(from_comfyui(prompt))) == stretches


@pytest.mark.parametrize(
    ("prompt", "stretches"),
    [
        ("a (red)1.4 cat++ (sky)-", [("a ", 1), ("red", 1.4), (" ", 1), ("cat", 1.21), (" ", 1), ("sky", 0.9)]),
        ("a (red:1.4) cat", [("a red:1.4 cat", 1)]),
        ("a (red) cat", [("a red cat", 1)]),
        ("a cat [dog]", [("a cat [dog]", 1)]),
        ("well-known 16-bit cat-", [("well-known 16-bit ", 1), ("cat", 0.9)]),
        ('"a red"1.2 (b (c)1.5)2', [("a red", 1.2), (" ", 1), ("b ", 2), ("c", 3)]),
        (r"a \(red\)", [("a (red)", 1)]),
    ],
)  # fmt: skip
def test_compel_reads_what_follows_words_and_brackets(prompt, stretches):
    """Right values: what `PromptParser` of compel 2.5.1 returned for these prompts."""
    assert joined(from_compel(prompt)) == stretches
    assert read_here(written(from_compel(prompt))) == stretches


@pytest.mark.parametrize(
    "prompt", ['("a", "b").blend(0.3, 0.7)', '("a", "b").and()', "a cat.swap(dog)", "a withLora(ink,0.5)"]
)
def test_what_compel_joins_or_swaps_is_not_read(prompt):
    assert from_compel(prompt) is None


def test_novelai_reads_curly_and_square_brackets_and_numbers():
    """Right values: docs.novelai.net, "Strengthening and weakening"."""
    found = joined(from_novelai("a {red} cat [dim], 1.5::large, sharp:: (plain)"))
    assert found == [
        ("a ", 1), ("red", 1.05), (" cat ", 1), ("dim", 0.9524), (", ", 1), ("large, sharp", 1.5), (" (plain)", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("tool", sorted(LANGUAGES))
def test_any_prompt_means_here_what_it_was_read_as(tool):
    pieces = [*"a ()[]{}+-,|", "\\", "cat", "1.4", ":0.5", "AND", "BREAK", "<lora:x:1>", "::"]
    draw = random.Random(0)
    for _ in range(400):
        stretches = LANGUAGES[tool]("".join(draw.choices(pieces, k=draw.randint(1, 14))))
        if stretches and all(abs(weight) <= 10 for _, weight in stretches):
            assert read_here(written(stretches)) == joined(stretches)


@pytest.mark.parametrize("tool", sorted(LANGUAGES))
@pytest.mark.parametrize("mark", ["(", ")", "((((a", '"', "{", "[", "+", "\\", "1::"])
def test_long_rows_of_brackets_are_read(tool, mark):
    text = "".join(part for part, _ in LANGUAGES[tool](mark * 2000) or [])
    assert len(text) <= 5 * 2000
