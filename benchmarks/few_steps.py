"""How much faster is a picture in few steps? A distilled student against its teacher, warm, in turn, in one run.

    python -m benchmarks.few_steps STUDENT [--teacher emoji] [--steps 4] [--teacher-steps 15] [--rounds 30]

Each round draws one picture with the student and one with the teacher, each as its folder has it but for the steps.
Leave the machine alone meanwhile; the last line reports what else took its processors.
"""

import argparse
import statistics
import time

from benchmarks.quiet import SPREAD, Meter, own_cpu_seconds
from benchmarks.race import ratio
from latent_diffusion import LatentDiffusionPipeline

PROMPT = "a 3d render of a red apple"
WARM = 3  # calls before the first that counts


def main() -> None:
    """Race and print medians, their ratio with its 95 % interval, and the load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("student")
    parser.add_argument("--teacher", default="emoji")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--teacher-steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    lanes = {
        "student": (LatentDiffusionPipeline.from_pretrained(arguments.student), arguments.steps),
        "teacher": (LatentDiffusionPipeline.from_pretrained(arguments.teacher), arguments.teacher_steps),
    }
    for pipe, steps in lanes.values():
        for seed in range(WARM):
            pipe(PROMPT, seed=seed, num_inference_steps=steps)
    seconds: dict[str, list[float]] = {name: [] for name in lanes}
    meter, (cpu, put_aside) = Meter(), own_cpu_seconds()
    for seed in range(arguments.rounds):
        for name, (pipe, steps) in lanes.items():
            start = time.perf_counter()
            pipe(PROMPT, seed=seed, num_inference_steps=steps)
            seconds[name].append(time.perf_counter() - start)
    cpu_after, put_aside_after = own_cpu_seconds()
    load = meter.stop(cpu_after - cpu, put_aside_after - put_aside)
    for name, (_, steps) in lanes.items():
        spread = max(seconds[name]) / min(seconds[name])
        doubt = f"; slowest call {spread:.2f} times the fastest" if spread > SPREAD else ""
        print(f"{name}, {steps} steps: {statistics.median(seconds[name]):.4f} s a picture{doubt}")
    made = ratio(seconds["teacher"], seconds["student"])
    print(f"the student is {made.value:.2f} times as fast (95 % interval {made.low:.2f} to {made.high:.2f})")
    print(load.disturbed or "the machine was quiet")


if __name__ == "__main__":
    main()
