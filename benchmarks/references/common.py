"""What the references share: where they are, and how they are served."""

import os
import socket

import uvicorn
from fastapi import FastAPI

MODEL_URL = os.environ.get("REFERENCE_MODEL_URL", "") + "/chat/completions"
DATABASE_URL = os.environ.get("REFERENCE_DATABASE_URL", "")
KEY = os.environ.get("REFERENCE_KEY", "")
POOL_SIZE = 10
PEOPLE = 16
JSON = {"Content-Type": "application/json"}


def serve(app: FastAPI) -> None:
    """Serve on a port of the kernel's choice, and print where."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])
