"""About the package, not of it: comparisons, measurements, and the doctor. Only the command line imports it."""
