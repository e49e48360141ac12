#!/usr/bin/env bash
# open_clip_torch 3.3.0 and transformers 5.24.0: one caption, one vocabulary, two lists of tokens.
#
# One would expect: open_clip's tokenizer and transformers' CLIPTokenizer stand for the same tokenizer (the models are
# converted from one to the other), so with open_clip's own vocabulary and merges both give the same ids.
# What happens instead: open_clip mends the text first (ftfy, and HTML entities undone twice), transformers does not.
# `&amp;` is one token there and three here; a typographic apostrophe, typographic quotes and a ligature become other
# words. Plain text, accents and digits agree.
#
# Output seen on 2026-11-29 (Python 3.11):
#   open_clip_torch 3.3.0, ftfy 6.3.1, transformers 5.24.0, tokenizers 0.23.3
#   'a photo of a red car, 4k': the same
#   "it's a dog": the same
#   'café in 1990': the same
#   'salt &amp; pepper': open_clip [salt & pepper], transformers [salt & amp ; pepper]
#   'a dog that doesn’t bark': open_clip [a dog that doesn 't bark], transformers [a dog that doesn âĢ Ļ t bark]
#   '“red” car': open_clip [" red " car], transformers [âĢ ľ red âĢ Ŀ car]
#   'ﬁne art': open_clip [fine art], transformers [ï ¬ ģ ne art]
#
# Why it matters: captions taken from web pages hold all of these. A text encoder trained with open_clip's tokens
# (Stable Diffusion 2, the second encoder of SDXL) never saw what diffusers makes of them, and a limit of 77 tokens is
# reached at another word. Cleaning captions before both tools, not between them, is the remedy.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 ftfy==6.3.1
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    --no-deps open_clip_torch==3.3.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import importlib.util
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

from transformers import CLIPTokenizer

print(", ".join(f"{name} {version(name)}" for name in ("open_clip_torch", "ftfy", "transformers", "tokenizers")))
# The tokenizer's file alone: the package itself would ask for torchvision and timm, which nothing here needs.
file = Path(sysconfig.get_path("purelib"), "open_clip", "tokenizer.py")
spec = importlib.util.spec_from_file_location("open_clip_tokenizer", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
theirs = module.SimpleTokenizer()

vocabulary = dict(theirs.encoder)
vocabulary["<|startoftext|>"] = vocabulary.pop("<start_of_text>")
vocabulary["<|endoftext|>"] = vocabulary.pop("<end_of_text>")
merges = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.get)
ours = CLIPTokenizer(vocab=vocabulary, merges=merges)


def words(ids):
    return " ".join(theirs.decoder[i].replace("</w>", "") for i in ids)


same, apart = ["a photo of a red car, 4k", "it's a dog", "caf\u00e9 in 1990"], [
    "salt &amp; pepper", "a dog that doesn\u2019t bark", "\u201cred\u201d car", "\ufb01ne art",
]
agree = {}
for caption in same + apart:
    one, two = theirs.encode(caption), ours(caption, add_special_tokens=False)["input_ids"]
    agree[caption] = one == two
    print(f"{caption!r}: " + ("the same" if one == two else f"open_clip [{words(one)}], transformers [{words(two)}]"))
expected = all(agree[caption] for caption in same) and not any(agree[caption] for caption in apart)
sys.exit(0 if expected else "the behaviour has changed")
PROGRAM
