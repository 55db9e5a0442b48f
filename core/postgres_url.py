"""The parameters of a PostgreSQL URL, as libpq names them, in asyncpg's terms.

Hosted services hand out URLs with `sslmode` and others; asyncpg takes arguments.
The meaning is libpq's: https://www.postgresql.org/docs/current/libpq-connect.html.
"""

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

_UNVERIFIED = ("disable", "allow", "prefer")
_VERIFIED = ("require", "verify-ca", "verify-full")
# `ssl` is asyncpg's name for sslmode.
_TLS = {
    *("sslmode", "ssl", "sslrootcert", "sslcert", "sslkey", "sslpassword"),
    *("ssl_min_protocol_version", "sslnegotiation"),
}
_SESSIONS = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
# What asyncpg does anyway, or what changes nothing for a client like this.
_IGNORED: Mapping[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "client_encoding": ("utf8", "UTF8", "auto"),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
_IGNORED_VALUES = frozenset(
    {
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
        *("tcp_user_timeout", "fallback_application_name"),
    }
)


class UnsupportedParameter(ValueError):
    """A parameter of the URL that cannot be honoured; the message shows no value."""


def connect_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return the URL without its parameters, and asyncpg's arguments in their place.

    Raises UnsupportedParameter.
    """
    given = {name: _single(name, value) for name, value in url.query.items()}
    # SQLAlchemy's own, which it reads from the URL itself.
    kept = {n: v for n, v in given.items() if n == "prepared_statement_cache_size"}
    arguments: dict[str, Any] = {"server_settings": {}}
    for name in given.keys() - kept.keys() - _TLS:
        if name in _READERS:
            _READERS[name](arguments, given[name])
        elif name not in _IGNORED_VALUES and given[name] not in _IGNORED.get(name, ()):
            raise UnsupportedParameter(_refusal(name))
    if tls := _tls({n: v for n, v in given.items() if n in _TLS}):
        arguments["ssl"] = tls
    if _choice(given, "sslnegotiation", ("postgres", "direct")) == "direct":
        arguments["direct_tls"] = True
    return url.set(query=kept), arguments


def _single(name: str, value: str | tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value
    raise UnsupportedParameter(f"the parameter {name} is given more than once")


def _refusal(name: str) -> str:
    if name in _IGNORED:
        allowed = " or ".join(_IGNORED[name])
        return f"the parameter {name} can only be {allowed} here: remove it"
    if name in ("host", "port", "user", "password", "dbname"):
        return f"the parameter {name} belongs before the question mark"
    return f"the parameter {name} is not supported: remove it"


def _read_timeout(arguments: dict[str, Any], value: str) -> None:
    if not value.isdecimal() or not 0 < int(value) <= 3600:
        raise UnsupportedParameter("connect_timeout must be 1 to 3600 seconds")
    arguments["timeout"] = float(value)


def _read_sessions(arguments: dict[str, Any], value: str) -> None:
    if value not in _SESSIONS:
        allowed = ", ".join(_SESSIONS)
        raise UnsupportedParameter(f"target_session_attrs must be one of {allowed}")
    arguments["target_session_attrs"] = value


def _setting(name: str) -> Callable[[dict[str, Any], str], None]:
    def read(arguments: dict[str, Any], value: str) -> None:
        arguments["server_settings"][name] = value

    return read


_READERS: Mapping[str, Callable[[dict[str, Any], str], None]] = {
    "connect_timeout": _read_timeout,
    "target_session_attrs": _read_sessions,
    "application_name": _setting("application_name"),
    "options": _setting("options"),
}


def _choice(given: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """The value of a parameter, the first that is allowed when it is not given."""
    value = given.get(name, allowed[0])
    if value not in allowed:
        raise UnsupportedParameter(f"{name} must be one of {', '.join(allowed)}")
    return value


def _tls(given: Mapping[str, str]) -> ssl.SSLContext | str | None:
    """What asyncpg takes as `ssl`; None leaves its default, which is `prefer`."""
    name = "ssl" if "ssl" in given and "sslmode" not in given else "sslmode"
    if not given:
        return None
    mode = _choice(given, name, ("prefer", *_UNVERIFIED, *_VERIFIED))
    if mode in _UNVERIFIED:
        for other in given.keys() - {"sslmode", "ssl"}:
            raise UnsupportedParameter(f"{other} needs sslmode=require or stricter")
        return mode
    context = _verifying(mode, given.get("sslrootcert", ""))
    if "sslcert" in given:
        with _readable("sslcert"):
            context.load_cert_chain(
                given["sslcert"], given.get("sslkey"), given.get("sslpassword")
            )
    if "ssl_min_protocol_version" in given:
        context.minimum_version = _version(given["ssl_min_protocol_version"])
    return context


def _verifying(mode: str, root: str) -> ssl.SSLContext:
    """A context that verifies as much of the server's certificate as `mode` says."""
    context = ssl.create_default_context()
    context.check_hostname = mode == "verify-full"
    if mode == "require" and not root:
        context.verify_mode = ssl.CERT_NONE
        return context
    own = Path.home() / ".postgresql" / "root.crt"
    file = root or (str(own) if own.exists() else "")
    # As libpq 16 names the system's certificates; without a file they are the default.
    if file and file != "system":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = mode == "verify-full"
        with _readable("sslrootcert"):
            context.load_verify_locations(file)
    return context


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Refuse a parameter whose file of certificates cannot be used."""
    try:
        yield
    except OSError as exc:  # ssl.SSLError is one
        problem = f"the file that {name} names cannot be used"
        raise UnsupportedParameter(problem) from exc


def _version(name: str) -> ssl.TLSVersion:
    versions = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
    if name not in versions:
        raise UnsupportedParameter(
            "ssl_min_protocol_version must be TLSv1.2 or TLSv1.3"
        )
    return versions[name]
