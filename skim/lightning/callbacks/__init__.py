"""Callbacks of a run: checkpoints, early stopping, progress."""
