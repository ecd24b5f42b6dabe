"""`gvm-ray doctor`: whether this machine, and what is installed on it, can run the package; and a trial of it."""
