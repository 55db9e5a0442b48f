"""Which network a request comes from."""

import pytest

from core.client import network_of


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a.socket", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_I24_an_address_belongs_to_one_network(host: str | None, network: str) -> None:
    assert network_of(host) == network
