"""Training and evaluation: the LightningModule, recipes, results and budgets."""
