"""What the routes of users take and give."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from modules.users.public import Role, Username


class UserRead(BaseModel):
    """A user, as everybody who may see one sees them."""

    model_config = ConfigDict(from_attributes=True)

    id: int = Field(examples=[7])
    username: str = Field(examples=["ada"])
    role: Role = Field(examples=[Role.USER])
    created_at: datetime = Field(examples=["2026-11-23T09:30:00.120000Z"])


class UserListed(UserRead):
    """A user, as an administrator sees them."""

    is_active: bool = Field(examples=[True])


class ChangeMe(BaseModel):
    """What one may change about oneself."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"username": "ada.lovelace"}]}
    )

    username: Username | None = Field(
        default=None,
        description="The new user name; unique without regard to letter case.",
    )


class ChangeUser(BaseModel):
    """What an administrator may change about somebody: never the role."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"is_active": False}]}
    )

    is_active: StrictBool | None = Field(
        default=None,
        description="`false` shuts the user out and ends all of their sessions.",
    )
