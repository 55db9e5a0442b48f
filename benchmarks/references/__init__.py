"""How little it can cost: gateways that leave out what a service needs."""
