"""What the routes of auth take and give."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from core.text import ReadId
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

    id: ReadId = Field(examples=[7])
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
    """An access token, and what gets the next one (RFC 6749, 5.1)."""

    access_token: str = Field(
        description="Send it as `Authorization: Bearer ...`.",
        examples=["eyJhbGciOi..."],
    )
    token_type: Literal["bearer"] = "bearer"
    expires_in: int = Field(
        description="Seconds that the access token is valid for.", examples=[900]
    )
    refresh_token: str = Field(
        description="For POST /auth/refresh, once. Keep it as you keep a password.",
        examples=["vopros_rt_..."],
    )


class Refresh(BaseModel):
    """A refresh token, which this uses up."""

    model_config = ConfigDict(extra="forbid")

    refresh_token: Annotated[
        SecretStr,
        Field(
            max_length=512,
            description="The one that came last.",
            examples=["vopros_rt_..."],
            json_schema_extra={"format": "password"},
        ),
    ]


class SessionRead(BaseModel):
    """One of your sessions."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(examples=["8c3b0d5e-6a52-4d0f-9a57-3f4b8a4f2f10"])
    created_at: datetime = Field(examples=["2026-11-23T09:30:00.120000Z"])
    last_used_at: datetime = Field(
        description="Its login, or when it was refreshed last.",
        examples=["2026-11-23T09:45:00.200000Z"],
    )
    expires_at: datetime = Field(
        description="When it ends unless it is refreshed before.",
        examples=["2026-12-07T09:45:00.200000Z"],
    )
    client: str | None = Field(
        description="What it was opened with: the User-Agent of its login.",
        examples=["curl/8.5.0"],
    )
    is_current: bool = Field(
        description="Whether this call is made in it.", examples=[True]
    )


class ChangePassword(BaseModel):
    """The password as it is, and as it should be."""

    model_config = ConfigDict(extra="forbid")

    current_password: Password
    new_password: Annotated[Password, Field(examples=["nine purple whales at tea"])]
