"""The door to language models: one contract, and plugins that keep it."""
