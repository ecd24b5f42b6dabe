"""About the package, not of it: comparisons, estimator measurements and speed. Only the command line imports it."""
