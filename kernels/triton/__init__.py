"""PagedAttention and its companions in Triton: the kernels of a GPU."""
