"""What models are made of: backbones, weights, checkpoints, BatchNorm."""
