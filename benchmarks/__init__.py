"""Load test, offline throughput, kernels, plots."""
