"""How gradients become updates of weights."""
