"""How good the gradient estimate of each allocator and weighting is at one fixed policy, against the true gradient."""
