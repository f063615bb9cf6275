"""Looking into models: which tokens are given how much computation."""
