"""The policy under training: model, optimizer, gradient norms, checkpoints. Its modules import torch."""
