"""Metrics of what tasks predict."""
