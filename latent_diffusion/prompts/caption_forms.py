"""The prompt forms of a model that is trained on: kept where its new captions have them, else none.

A model that was taught "a photo of a tabby cat" must be given these words. Forms that would rewrite them are left out.
"""

from collections.abc import Iterable
from dataclasses import replace

from latent_diffusion.checkpoint.prompt_forms import PromptForms
from latent_diffusion.prompts.rewrite import Rewritten, rewrite

__all__ = ["forms_for_captions"]

_ARTICLES = ("a ", "an ", "the ")


def forms_for_captions(forms: PromptForms | None, captions: Iterable[str]) -> PromptForms | None:
    """Return `forms` with the names that `captions` add, or None where they would change the words of a caption.

    A caption has the forms when it is the opening words of a style and a name, as in "a 3d render of a robot".
    """
    if forms is None:
        return None
    distinct: dict[str, None] = {}
    names = dict(forms.names)
    for caption in captions:  # one by one: the first without a form ends it, and listing all can take a minute
        if not caption or caption in distinct:
            continue
        distinct[caption] = None
        opening = next((words for words in forms.styles if caption.startswith(f"{words} ")), None)
        if opening is None:
            return None
        name = caption.removeprefix(opening).strip()
        article = next((word for word in _ARTICLES if name.startswith(word)), "")
        names.setdefault(name.removeprefix(article).lower(), name.removeprefix(article))
    extended = replace(forms, names=names)
    read_as_written = all(rewrite(caption, extended) in (None, Rewritten(None)) for caption in distinct)
    return extended if read_as_written else None
