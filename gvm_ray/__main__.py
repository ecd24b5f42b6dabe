"""`python -m gvm_ray`: the same as `gvm-ray`."""

import sys

from gvm_ray.cli import main

sys.exit(main())
