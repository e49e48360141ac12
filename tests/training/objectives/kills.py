"""A run that is killed again and again beside one that is not."""

import random
import signal
import time

import real
from processes import assert_equal_states, finish, last_step, losses_of, start, train

GAN_FROM = 5
"""Update from which the discriminator of `autoencoder` plays; random kills come later."""


def kill_at_random_steps(config, folder, name, kills):
    """Kill within a save first, then at random moments of random steps; the end equals that of an undisturbed run."""
    straight, killed = folder / "straight", folder / "killed"
    assert train(straight, config, run=real.run) == 0
    steps = losses_of(straight)[-1]["step"]
    assert train(killed, config, run=real.run, fault=("within a tensor file", 7)) == -signal.SIGKILL
    chance = random.Random(name)
    for target in sorted(chance.sample(range(GAN_FROM + 1, steps - 1), kills - 1)):
        process = start(killed, config, run=real.run)
        while last_step(killed) < target and process.is_alive():
            time.sleep(0.003)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        assert finish(process) in (-signal.SIGKILL, 0)
    assert train(killed, config, run=real.run) == 0
    assert_equal_states(killed, straight)
    assert losses_of(killed) == losses_of(straight)
