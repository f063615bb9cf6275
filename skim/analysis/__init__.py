"""Analysis of models: which tokens get how much computation."""
