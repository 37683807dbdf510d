"""serving - requests -> tokens. Today: one conversation on this machine."""
