"""Text encoder and autoencoder of a run: there all the time, or only while something is encoded or decoded.

What trains on caches alone needs neither of them in an update. Dropped, they leave their memory to the U-Net; what
needs them now and then (sample pictures, held-out pictures, the result) reads them again from the model's files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.runtime.cpu.allocator import give_back_free
from latent_diffusion.runtime.precision import place

__all__ = ["Encoders"]

ReadEncoders = Callable[[], tuple[AutoencoderKL, TextEncoder | TextEncoders]]


class Encoders:
    """The two encoders, in one model or in several that share them.

    Attributes:
        dropped: whether their weights are gone.
    """

    def __init__(
        self, models: Sequence[Components], read: ReadEncoders, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Take the models, what reads the weights again, and where and in what format the autoencoder computes."""
        self._models, self._read, self._device, self._dtype = models, read, device, dtype
        self._text_dtype = next(models[0].text_encoder.parameters()).dtype
        self.dropped = False

    def drop(self) -> None:
        """Put weights without memory in place of all weights."""
        self.dropped = True
        for model in self._models:
            for part in (model.autoencoder, model.text_encoder):
                _empty(part)
        give_back_free()

    @contextmanager
    def there(self) -> Iterator[None]:
        """Read dropped weights for the time of the `with`."""
        if not self.dropped:
            yield
            return
        give_back_free()  # what the updates left free in the heap; large weights are read beside it
        autoencoder, text_encoder = self._read()
        place(autoencoder, self._device, self._dtype)
        text_encoder.to(self._device, self._text_dtype)
        for model in self._models:
            model.autoencoder.load_state_dict(autoencoder.state_dict(), assign=True)
            model.text_encoder.load_state_dict(text_encoder.state_dict(), assign=True)
        self.dropped = False
        try:
            yield
        finally:
            self.drop()


def _empty(network: nn.Module) -> None:
    for layer in network.modules():
        for name, weight in layer._parameters.items():
            if weight is not None:
                layer._parameters[name] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
