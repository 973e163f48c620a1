"""The studies behind docs/benchmarks.md: each measures one idea against doing without it, on the same machine."""
