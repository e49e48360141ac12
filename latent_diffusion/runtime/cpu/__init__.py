"""Faster inference and training on CPUs: packed weights, kernels in C, memory, threads."""
