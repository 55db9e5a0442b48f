"""`python -m core` is the same as `vopros`."""

from core.cli import main

main()
