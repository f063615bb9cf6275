"""Metrics of predictions: classes and numbers, chunks of tags, spans of a text."""
