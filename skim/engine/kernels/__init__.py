"""Kernels of attention: a padded batch anywhere, packed rows on a CPU and on a GPU."""
