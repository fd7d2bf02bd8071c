"""Trackers: a run's curves, scores and images in TensorBoard, MLflow or Weights & Biases; a module for each."""
