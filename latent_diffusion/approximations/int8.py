"""8-bit weights and activations (W8A8) in the U-Net's linear layers and convolutions, on CPUs.

Weights are rounded with a scale for each output, activations with one for each token, or image where a kernel sums over
pixels. Which layers stay exact, and why: see `runtime.cpu.eight_bit_layers`. The integer sums are exact, so the numbers
do not depend on the number of threads, and AVX2, AVX-512, VNNI and AMX give the same. Plain C gives others: it rounds
between a product and its sum where inputs are rounded and sums are scaled.
Reference: Jacob et al. 2018, arXiv:1712.05877.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from latent_diffusion.checks import check_name
from latent_diffusion.diffusion.approximation import Approximation, Enter, Scope
from latent_diffusion.diffusion.denoiser import Network
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.unet import UNet
from latent_diffusion.runtime.cpu import eight_bit_layers
from latent_diffusion.runtime.cpu.native import eight_bits

__all__ = ["Int8"]

MOST, ALL, LINEAR, NONE = LAYERS = "most", "all", "linear", "none"


@dataclass(frozen=True)
class Int8(Approximation):
    """Products of 8-bit numbers; layers "none" is exact."""

    neutral: ClassVar[Mapping[str, Any]] = {"layers": NONE}

    layers: str = MOST  # "most": all but the most sensitive ones; "all"; "linear": no 3x3 convolutions either; "none"

    def __post_init__(self) -> None:
        check_name("int8: layers", self.layers, LAYERS)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], open_tiny: Callable[[str], Any]) -> "Int8":
        """Return it with the layers that the text names, or else with those that are faster on this processor.

        Raises:
            ConfigError: none are.
        """
        if values or not eight_bits.available():  # the second is refused where the network is checked
            return cls(**values)
        if not eight_bit_layers.pays(convolutions=False):
            raise ConfigError(
                "approximation 'int8' is no faster than the exact way on this processor, by a short trial; "
                f"leave it out, or use int8:layers={MOST} to draw with it all the same"
            )
        return cls(MOST if eight_bit_layers.pays(convolutions=True) else LINEAR)

    def check(self, network: Network) -> None:
        """Refuse an installation or a number format without kernels.

        Raises:
            ConfigError: saying what is missing.
        """
        assert isinstance(network, UNet), "a model's network is a U-Net"
        if not eight_bits.available():
            raise ConfigError(
                "approximation 'int8' needs the compiled kernels, which are not installed or are switched off; "
                "install on Linux with a C compiler (docs/installs.md), and unset LATENT_DIFFUSION_NATIVE"
            )
        dtype = network.conv_in.weight.dtype
        if dtype not in eight_bits.FORMATS:
            raise ConfigError(f"approximation 'int8' works in float32 and bfloat16, not {dtype}; use --dtype float32")

    def change(self, network: Network, scope: Scope) -> tuple[Network, Enter | None]:
        """Return the U-Net with 8-bit layers.

        Raises:
            ConfigError: the U-Net works on a GPU.
        """
        if self.layers == NONE or not isinstance(network, UNet):  # seg's blurred prediction stays exact
            return network, None
        if scope.device.type != "cpu":
            raise ConfigError(f"approximation 'int8' works on CPUs, not on {scope.device.type}; leave it out")
        convolutions, outermost = self.layers in (MOST, ALL), self.layers == ALL
        return eight_bit_layers.in_eight_bits(network, convolutions=convolutions, outermost=outermost), None
