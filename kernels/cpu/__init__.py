"""The CPU backend: plain PyTorch until the compiled library takes over its matmuls and its attention."""
