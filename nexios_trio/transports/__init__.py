"""Floor 2: how messages reach a connection and leave it."""
