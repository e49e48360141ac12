"""Faster inference on GPUs: CUDA graphs, Triton kernels, fusions."""
