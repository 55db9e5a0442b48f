"""What the routes of auth take and give."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from modules.auth.passwords import LONGEST_CHARS
from modules.users.public import Role, Username

Password = Annotated[
    SecretStr,
    Field(
        max_length=LONGEST_CHARS,
        description="Any characters; 15 or more are better than any mixture.",
        examples=["correct horse battery staple"],
        json_schema_extra={"format": "password"},
    ),
]


class Register(BaseModel):
    """A new account."""

    model_config = ConfigDict(extra="forbid")

    username: Username = Field(
        description=(
            "3 to 32 Latin letters, digits and single . _ - between them; unique"
            " without regard to letter case."
        ),
        examples=["ada"],
    )
    password: Password


class Registered(BaseModel):
    """The account that was made."""

    model_config = ConfigDict(from_attributes=True)

    id: int = Field(examples=[7])
    username: str = Field(examples=["ada"])
    role: Role = Field(examples=[Role.USER])
    created_at: datetime = Field(examples=["2026-11-23T09:30:00.120000Z"])


class TokenForm(BaseModel):
    """The OAuth2 password form (RFC 6749, 4.3.2); unknown fields are ignored."""

    # Checked by the route: the RFC has a code of its own for a wrong one.
    grant_type: str = Field("", examples=["password"])
    username: str = Field(max_length=256, examples=["ada"])
    password: Password


class Token(BaseModel):
    """An access token (RFC 6749, 5.1)."""

    access_token: str = Field(
        description="Send it as `Authorization: Bearer ...`.",
        examples=["eyJhbGciOi..."],
    )
    token_type: Literal["bearer"] = "bearer"
    expires_in: int = Field(description="Seconds it is valid for.", examples=[900])


class ChangePassword(BaseModel):
    """The password as it is, and as it should be."""

    model_config = ConfigDict(extra="forbid")

    current_password: Password
    new_password: Annotated[Password, Field(examples=["nine purple whales at tea"])]
