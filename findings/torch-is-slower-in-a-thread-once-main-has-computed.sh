#!/usr/bin/env bash
# torch 2.13.0 on a processor: a model that one thread warms up and another thread runs.
#
# One would expect: a thread that serves requests (FastAPI, Gradio, a queue) computes as fast as the main thread, which
# has loaded the model and does nothing any more.
# What happens instead: libgomp keeps the helpers of every thread that ever computed in parallel. With those of two
# threads there are more than processors, and from then on no helper waits actively for the next operation: each of
# them sleeps and is woken, a few times an operation. Small operations take 1.5 to 1.8 times as long. Where main has not
# computed, or the thread that loaded the model has ended (its helpers end with it), nothing of it is seen.
#
# Output seen on 2026-11-29 (Python 3.11, two hyperthreads of an AMD EPYC 9004, nothing else at work). Only the sleeps are
# checked: they are the same on a busy machine, the times are not.
#   torch 2.13.0+cpu, 2 threads
#   300 convolutions in a thread, main has not computed yet:     132 ms,      0 sleeps
#   300 convolutions in main:                                    137 ms,      0 sleeps
#   300 convolutions in a thread, main idle since:               237 ms,   2393 sleeps
#
# Why it matters: a server that loads its model in the main thread and draws in another is slow for no visible reason.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.0
cd "$folder"

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import resource
import sys
import threading
import time
from statistics import median

import torch

CALLS, REPEATS = 300, 7
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
if torch.get_num_threads() < 2:
    sys.exit("one processor has no helpers: nothing to see here")
convolution = torch.nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False)
x = torch.randn(1, 64, 32, 32)


def sleeps_of(where):
    """Run the convolutions, print how long they take, and return how often a thread of the process slept."""
    for _ in range(CALLS):
        convolution(x)
    seconds, sleeps = [], []
    for _ in range(REPEATS):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        for _ in range(CALLS):
            convolution(x)
        seconds.append(time.perf_counter() - start)
        sleeps.append(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
    print(f"{CALLS} convolutions in {where + ':':42} {1000 * median(seconds):6.0f} ms, {median(sleeps):6.0f} sleeps")
    return median(sleeps)


def in_a_thread(where):
    """Do the same in a thread that ends."""
    found = []
    thread = threading.Thread(target=lambda: found.append(sleeps_of(where)))
    thread.start()
    thread.join()
    return found[0]


before = in_a_thread("a thread, main has not computed yet")
main = sleeps_of("main")
after = in_a_thread("a thread, main idle since")
if max(before, main) < CALLS < after:
    sys.exit(0)
sys.exit("the behaviour has changed")
PROGRAM
