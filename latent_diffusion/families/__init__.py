"""Model families as pure data: values only, found by name.

AUTOENCODER, UNET       sizes of the networks
SCHEDULER               a `scheduler_config.json` of diffusers: noise law, prediction, default sampler
TEXT                    the text towers; a family without them is that of no single file
ZEROS_FOR_EMPTY_PROMPT  True: the states of an empty negative prompt are zeros
ARCHITECTURE            its name in ModelSpec, for the header of single files
LOOKS_LIKE              a family with networks of the same sizes: a single file is of this one where this one's
                        prediction is found and is another than that one's, and where `--family` names it
"""

__all__ = ["FAMILIES"]

FAMILIES = __name__
