"""What the routes of users take and give."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from core.text import ReadId
from modules.users.public import Role, Username


class UserRead(BaseModel):
    """A user, as everybody who may see one sees them."""

    model_config = ConfigDict(from_attributes=True)

    id: ReadId = Field(examples=[7])
    username: str = Field(examples=["ada"])
    role: Role = Field(examples=[Role.USER])
    created_at: datetime = Field(examples=["2026-11-23T09:30:00.120000Z"])


class UserListed(UserRead):
    """A user, as an administrator sees them."""

    is_active: bool = Field(examples=[True])


_EXPORTED: dict[str, Any] = {
    "exported_at": "2026-11-23T09:45:00.120000Z",
    "profile": {
        "id": 7,
        "username": "ada",
        "role": "user",
        "created_at": "2026-11-23T09:30:00.120000Z",
        "is_active": True,
    },
    "sessions": [
        {
            "id": "0b0e5d3c-8f0f-4a53-9a3c-6d1c1f5a2b11",
            "created_at": "2026-11-23T09:30:00.120000Z",
            "last_used_at": "2026-11-23T09:30:00.120000Z",
            "expires_at": "2026-12-07T09:30:00.120000Z",
            "revoked_at": None,
            "client": "curl/8.5.0",
        }
    ],
    "questions": [
        {
            "id": 42,
            "user_id": 7,
            "content": "What is the capital of France?",
            "status": "answered",
            "answer": "The capital of France is Paris.",
        }
    ],
    "complete": True,
}


class Exported(BaseModel):
    """All that is kept of you: a member for whatever an enabled module keeps."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [_EXPORTED]}
    )

    exported_at: datetime
    profile: UserListed
    complete: Literal[True] = Field(description="The last member: nothing is cut off.")


class ChangeMe(BaseModel):
    """What one may change about oneself."""

    # The documentation's page sends the example by itself: it must change nothing.
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    username: Username | None = Field(
        default=None,
        description="The new user name; unique without regard to letter case.",
    )


class ChangeUser(BaseModel):
    """What an administrator may change about somebody: never the role."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    is_active: StrictBool | None = Field(
        default=None,
        description="`false` shuts the user out and ends all of their sessions.",
    )
