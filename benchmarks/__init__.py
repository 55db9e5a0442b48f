"""What the service costs, measured: `make bench` prints the tables."""
