"""The product: ask, get an answer, read the last three."""
