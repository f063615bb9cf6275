"""Checkpoints of other code, one file each: their tensors under the names that transformers and skim have."""
