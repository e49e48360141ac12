"""A player whose networks are those of a model, whole or as small changes, with rules for single weights."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.models.unet import UNet
from latent_diffusion.training.networks.weight_rules import WeightRule, ends, learning_rates
from latent_diffusion.training.objective import Player

__all__ = ["TrainedNetworks"]


class TrainedNetworks(Player):
    """The networks of a model that are trained, or their changes; the model itself is not registered."""

    def __init__(self, parts: Components, trained: Mapping[str, nn.Module]) -> None:
        """Take the model that computes and what is registered, saved and given to the optimizer, by name."""
        super().__init__()
        for name, module in trained.items():
            self.add_module(name, module)
        self.parts, self.trained = (parts,), tuple(trained)
        self._rates: dict[str, float] = {}
        self._ends: dict[str, float] = {}

    @property
    def unet(self) -> UNet:
        """The network that computes, adapted or not."""
        return self.parts[0].unet

    @property
    def trains_text(self) -> bool:
        """Whether text states change during training: a text encoder or a word is trained."""
        return any(name.startswith(("text_encoder", "words")) for name in self.trained)

    def computing(self) -> tuple[nn.Module, ...]:
        """The U-Net, whose layers may take faster kernels, also where only changes of it are registered."""
        return (self.unet,)

    def learning_rates(self) -> dict[str, float]:
        """Return the peak learning rates that rules have for single parameters."""
        return self._rates

    def ends(self) -> dict[str, float]:
        """Return the share of the updates after which rules freeze single parameters."""
        return self._ends

    def obey(self, rules: Sequence[WeightRule]) -> None:
        """Take learning rates and ends of the parameters from `rules`; "/" in a name, as of an adapter, is a dot."""
        names = {name.replace("/", "."): name for name, p in self.named_parameters() if p.requires_grad}
        self._rates = {names[path]: rate for path, rate in learning_rates(rules, names).items()}
        self._ends = {names[path]: share for path, share in ends(rules, list(names)).items()}

    def network(self, cond: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the U-Net as a function of x (B, C, h, w) and t (B,), with the captions `cond` projected once."""
        projected = self.unet.project(cond)
        return lambda x, t: self.unet(x, t, projected)
