"""A journey through the client that openapi-python-client generates."""

import json
import os

from client import AuthenticatedClient, Client
from client.api.auth import log_in, register
from client.api.questions import ask_question, list_my_questions, stream_answer
from client.models import (
    AskQuestion,
    Problem,
    QuestionRead,
    Register,
    Registered,
    Token,
    TokenForm,
)
from httpx import Timeout

URL = os.environ["VOPROS_URL"]
PASSWORD = "correct horse battery staple"


def signed_in() -> AuthenticatedClient:
    """Register, log in, and return a client that sends the token."""
    client = Client(base_url=URL, timeout=Timeout(60))
    made = register.sync(client=client, body=Register("python", PASSWORD))
    assert isinstance(made, Registered), made
    form = TokenForm("python", PASSWORD, grant_type="password")
    token = log_in.sync(client=client, body=form)
    assert isinstance(token, Token), token
    return AuthenticatedClient(URL, token.access_token, timeout=Timeout(60))


def main() -> None:
    client = signed_in()
    asked = ask_question.sync(client=client, body=AskQuestion("Which river?"))
    assert isinstance(asked, QuestionRead), asked
    assert asked.answer == "Answer to: Which river?"
    refused = ask_question.sync(client=client, body=AskQuestion(" "))
    assert isinstance(refused, Problem), refused
    assert refused.code == "validation_failed"

    whole = stream_answer.sync(client=client, body=AskQuestion("Which sea?"))
    assert isinstance(whole, str), whole
    assert "event: done" in whole
    last = stream(client)
    assert isinstance(last, QuestionRead), last
    newest = list_my_questions.sync(client=client)
    assert isinstance(newest, list), newest
    assert newest[0].id == last.id


def stream(client: AuthenticatedClient) -> QuestionRead:
    """Read a stream line by line, and return its last event."""
    request = stream_answer._get_kwargs(body=AskQuestion("Which lake?"))
    last = ""
    with client.get_httpx_client().stream(**request) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
    return QuestionRead.from_dict(json.loads(last))


main()
