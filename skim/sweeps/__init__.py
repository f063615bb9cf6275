"""Sweeps: several jobs in one command, in a folder that remembers which have finished. Imports nothing heavy."""
