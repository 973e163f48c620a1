"""The HTTP process: routes, validation, streaming, supervision. No torch is imported here."""
