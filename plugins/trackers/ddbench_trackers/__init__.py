"""Trackers: curves, scores and images of runs in TensorBoard, MLflow or Weights & Biases; one module each."""
