"""From files and data sets to batches: reading, checking, labels, masks, and the built-in grammar."""
