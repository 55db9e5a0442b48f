"""A language model in a container; run there by `python -c`, so it imports nothing.

It prints the key and the question that it is sent, and answers after a line of input.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Model(BaseHTTPRequestHandler):
    """Chat completions, as OpenAI speaks them."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = asked["messages"][-1]["content"]
        told = [self.headers["Authorization"], asked["model"], question]
        print(json.dumps(told), flush=True)
        sys.stdin.readline()
        message = {"role": "assistant", "content": f"Answer to: {question}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"model": asked["model"], "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", 9000), Model).serve_forever()
