"""PagedAttention and its companions in Triton: their place; not built yet, so `select("triton", ...)` refuses."""
