"""Asks the server of this machine whether it is ready: the health check of the image.

Run every few seconds, so it imports neither the application nor anything heavy. Of the
configuration it knows only the environment, as the image and its users set it.
"""

import os
import re
import sys
from http.client import HTTPConnection, HTTPException


def main() -> None:
    """Exit with 0 when the server is ready, else with 1 and what is wrong."""
    port = int(os.environ.get("VOPROS_SERVER__PORT", "8000"))
    # Any other name than one of these would be refused.
    names = re.findall(r"[\w.-]+", os.environ.get("VOPROS_SERVER__ALLOWED_HOSTS", ""))
    # Not urllib: it would ask a proxy that the environment names.
    connection = HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        host = names[0] if names else "localhost"
        connection.request("GET", "/health/ready", headers={"Host": host})
        response = connection.getresponse()
        said = response.read().decode(errors="replace")
    except (OSError, HTTPException) as exc:
        sys.exit(f"no answer: {exc}")
    finally:
        connection.close()
    if response.status != 200:
        sys.exit(said)


if __name__ == "__main__":
    main()
