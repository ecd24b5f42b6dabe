"""About the package, not of it: comparisons, estimator measurements, speed, and the doctor. Only the command line imports it."""
