"""A question's insert that is sent once more, because its connection died."""

import asyncio
import uuid

import pytest
from sqlalchemy import text

from modules.questions.settings import QuestionSettings
from modules.questions.writing import NewQuestion, Writing
from tests.conftest import Databases, connected
from tests.support.slow import slow_inserts, waiting

_USER = "INSERT INTO users (username, username_key) VALUES ('ada', 'ada') RETURNING id"


@pytest.mark.parametrize("limits", [{}, {"per_day": 1}, {"service_per_day": 1}])
async def test_an_insert_that_goes_on_without_its_connection_is_found(
    databases: Databases, limits: dict[str, int]
) -> None:
    """It is committed while it is sent again: neither refused by that, nor twice."""
    url = await databases.migrated("postgresql")
    settings = QuestionSettings.model_validate(limits)
    async with connected(url) as database:
        async with database.transaction() as session:
            user_id = await session.scalar(text(_USER))
        writing = Writing(database, settings, 90)
        new = NewQuestion(user_id, "Once?", uuid.uuid4().hex, "key", "f" * 64)
        async with slow_inserts(database):
            first = asyncio.create_task(writing._add([new]))
            await waiting(database, 1)
            # As the batcher does once it has lost the connection of the first.
            again = asyncio.create_task(writing._add_again([new]))
            await waiting(database, 2)
        assert await first == await again != {}
