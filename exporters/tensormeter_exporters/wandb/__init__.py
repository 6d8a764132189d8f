"""The `wandb` destination: Weights & Biases."""
