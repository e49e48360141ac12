"""`python -m latent_diffusion` is the command `latent-diffusion`."""

import sys

from latent_diffusion.cli.main import main

sys.exit(main())
