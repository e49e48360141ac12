"""The prompt language: what brackets, schedules, AND and tags mean, and that no prompt costs more than a moment."""

import math
import random
import time

import pytest

from latent_diffusion.errors import ConfigError, LatentDiffusionWarning
from latent_diffusion.prompts.schedule import texts_by_step
from latent_diffusion.prompts.script import read_script
from latent_diffusion.prompts.syntax import MAX_WEIGHT, parse_attention
from latent_diffusion.prompts.terms import AdapterTag, Term, split_terms, take_adapters


def spans(prompt):
    return [[(span.text, round(span.weight, 6)) for span in part] for part in parse_attention(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("a [b", [("a ", 1), ("b", 0.909091)]),
        ("a) b]", [("a) b]", 1)]),
        (r"\(literal\] \\ \x", [(r"(literal] \ x", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("[on]", [("on", 0.909091)]),
        ("(a:1.3)(b:.5)(c:-1)(d: 2. )", [("a", 1.3), ("b", 0.5), ("c", -1), ("d", 2)]),
        ("((a:1.5))", [("a", 1.65)]),
        ("a:1.3) b", [("a:1.3) b", 1)]),
        ("(a:1e999)", [("a:1e999", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 0.909091)]),
        ("(:1.3)", []),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
             ("sky", 1.4641), (".", 1.1)],
        ),
    ],
)  # fmt: skip
def test_attention(prompt, expected):
    assert spans(prompt) == [expected]


def test_break_starts_a_part_also_within_brackets():
    assert spans("a BREAK b") == [[("a", 1)], [("b", 1)]]
    assert spans("BREAK") == [[], []]
    assert spans("(a BREAK\n b) c") == [[("a", 1.1)], [("b", 1.1), (" c", 1)]]
    assert spans("BREAKFAST break") == [[("BREAKFAST break", 1)]]


def test_weights_stay_in_range_and_say_so():
    with pytest.warns(LatentDiffusionWarning, match="10, the largest weight"):
        assert spans("(a:99999999999)") == [[("a", MAX_WEIGHT)]]
    with pytest.warns(LatentDiffusionWarning):
        assert spans("(" * 9000 + "a" + "[" * 9000 + ")" * 100)[0][0][1] == MAX_WEIGHT
    with pytest.warns(LatentDiffusionWarning):
        assert spans("(" + "(" * 50 + "a:-" + "9" * 500 + ")")[0] == [("a", -MAX_WEIGHT)]


def hostile():
    draw = random.Random(0)
    yield from (mark * 10_000 for mark in "([)]:|\\<,")
    yield from ("(a" * 5000, "[a:" * 3000, "[a|" * 3000, "a:1.3)" * 1600, "(" * 5000 + ")" * 5000)
    yield from ("(" + "1" * 9998, "(:" + "1" * 9998, "[a:b:" + "1" * 9994 + "]", ":" + " " * 9999, "<lora:" * 1600)
    yield from ("(" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000, "[a:b:0.5]" * 1100, "AND " * 31)
    for _ in range(200):
        yield "".join(draw.choice(["(", ")", "[", "]", ":", "|", "\\", "0.5", " AND ", "BREAK", "a", ",", "<lora:x:1>"])
                      for _ in range(draw.randrange(40)))  # fmt: skip


@pytest.mark.filterwarnings("ignore::latent_diffusion.errors.LatentDiffusionWarning")
def test_no_prompt_costs_more_than_a_moment_or_breaks():
    for prompt in hostile():
        start = time.process_time()
        for text in texts_by_step(prompt, 3):
            words, _ = take_adapters(text)
            for term in split_terms(words):
                for part in parse_attention(term.text):
                    assert all(math.isfinite(span.weight) and abs(span.weight) <= MAX_WEIGHT for span in part)
        # it takes milliseconds; squares of the length would take minutes, and a busy machine is no fault
        assert time.process_time() - start < 5, f"{prompt[:20]!r}: far from linear"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("plain (text) [less] :", ["plain (text) [less] :"] * 4),
        ("a [b:c:0.5] d", ["a b d", "a b d", "a c d", "a c d"]),
        ("[b:c:1]", ["b", "c", "c", "c"]),
        ("[b:c:1.0]", ["b", "b", "b", "b"]),
        ("[c:0.25]", ["", "c", "c", "c"]),
        ("[c::3]", ["c", "c", "c", ""]),
        ("[a|b]x", ["ax", "bx", "ax", "bx"]),
        ("[a||(b:1.2)]", ["a", "", "(b:1.2)", "a"]),
        ("[(a:1.2):[b|c]:2]", ["(a:1.2)", "(a:1.2)", "b", "c"]),
        ("[[a:b:1]:c:3]", ["a", "b", "b", "c"]),
        ("[a:b:c:0.5]", ["[a:b:c:0.5]"] * 4),
        ("[a:b:x]", ["[a:b:x]"] * 4),
        ("[a:b", ["[a:b"] * 4),
        ("([a:b:2]", ["(a", "(a", "(b", "(b"]),
        (r"\[a:b:2\] [x|y]", [r"\[a:b:2\] x", r"\[a:b:2\] y"] * 2),
        ("(a [b|c) d]", ["(a b", "(a c) d"] * 2),
        ("[b:c:-1]", ["c"] * 4),
        ("[b:c:99]", ["b"] * 4),
    ],
)
def test_schedules(prompt, expected):
    assert list(texts_by_step(prompt, 4)) == expected


def test_and_joins_prompts_with_weights():
    assert split_terms("a photo in 16:9") == (Term("a photo in 16:9", 1.0),)
    assert split_terms("a cat AND a dog :0.5") == (Term("a cat", 1.0), Term("a dog", 0.5))
    assert split_terms("a:-.3 AND\nb") == (Term("a", -0.3), Term("b", 1.0))
    assert split_terms("SAND AND ANDES") == (Term("SAND", 1.0), Term("ANDES", 1.0))
    with pytest.raises(ConfigError, match="33 prompts"):
        split_terms("a AND " * 32)
    with pytest.warns(LatentDiffusionWarning, match="beyond 10"):
        assert split_terms("a AND b :11")[1].weight == MAX_WEIGHT


def test_adapter_tags_are_taken_out():
    assert take_adapters("a <3 b <lora> c") == ("a <3 b <lora> c", ())
    text, tags = take_adapters("<lora:ink:0.8>a cat<lyco:Foo Bar:te=.5:unet=1><lora:x><lora:y:1:0.5>")
    assert text == "a cat"
    assert tags == (
        AdapterTag("ink", 0.8, 0.8), AdapterTag("Foo Bar", 0.5, 1), AdapterTag("x", 1, 1), AdapterTag("y", 1, 0.5)
    )  # fmt: skip
    for wrong in ("<lora:x:nan>", "<lora:x:1e9>", "<lora:x:a>", "<lora: :1>", "<lora:x:1:2:3>", "<lora:x:dyn=4>"):
        with pytest.raises(ConfigError, match="prompt: <lora:"):
            take_adapters(wrong)


@pytest.mark.parametrize(
    ("prompt", "words", "message"),
    [
        ("a cat <hypernet:anime:1>", "a cat ", "hypernet:anime:1.*left out"),
        ("a __colour__ cat", "a __colour__ cat", "__colour__.*read as text"),
        ("a {red|blue} cat", "a {red|blue} cat", "red|blue.*read as text"),
    ],
)
def test_what_other_programs_fill_in_is_named(prompt, words, message):
    with pytest.warns(LatentDiffusionWarning, match=message):
        script = read_script(prompt, None, 1, syntax=True, negative=False)
    assert script.steps[0][0][0].first == words


def test_words_with_underscores_and_braces_are_words(recwarn):
    for prompt in ("snake_case_name", "a {cat}", "a|b", "f(x) = {}"):
        read_script(prompt, None, 1, syntax=True, negative=False)
    assert not recwarn.list
