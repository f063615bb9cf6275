"""Kernels in Triton, for a GPU: imported by the first call that may use one, never with skim."""
