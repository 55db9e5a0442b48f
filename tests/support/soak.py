"""How much a test does: little in CI, much where somebody lets it run for long."""

import os


def scaled(ci: int, soak: int) -> int:
    """`soak` where the environment says VOPROS_SOAK=1, else `ci`."""
    return soak if os.environ.get("VOPROS_SOAK") == "1" else ci
