"""`gvm-ray bench`: the package's figures, each beside the same thing done the bare way on the same machine."""
