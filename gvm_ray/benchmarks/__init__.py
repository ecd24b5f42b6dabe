"""Finished models on published benchmarks: samples that are kept, and tables with intervals made of them."""
