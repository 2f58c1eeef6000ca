"""Our kernels beside other libraries' in one process on one GPU: `python3 -m peers --help`."""
