"""Kernels in C, built when the package is installed where there is a C compiler, for each level of processor.

Without them, and where a trial finds them slower, everything runs with torch's own kernels.
"""
