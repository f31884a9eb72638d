"""One module for each command: parse, call, print. `sifkit.cli` joins them."""
