"""Kernels in C for CPUs with AVX-512, built when the package is installed where there is a C compiler.

Without them, or on other processors, everything runs with torch's own kernels.
"""
