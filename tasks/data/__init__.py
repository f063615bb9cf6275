"""Data of tasks, from files and data sets to batches: reading, checks, labels, masks, and the built-in grammar."""
