"""A comparison of allocators: records of runs, and the statistics, tables and figures made of them."""
