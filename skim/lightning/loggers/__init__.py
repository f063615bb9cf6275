"""Loggers that show more than curves: Weights & Biases, TensorBoard, MLflow."""
