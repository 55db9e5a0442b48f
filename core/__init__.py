"""The kernel: it knows no module and no provider, and loads them by name."""
