"""Errors of the gradient estimate of each allocator and weighting, at a fixed policy, against the true gradient."""
