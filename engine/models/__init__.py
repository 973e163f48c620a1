"""One decoder, a few token mixers, one table of architectures."""
