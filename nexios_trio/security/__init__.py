"""Floor 5: who may come in, and how much he may do. Each part is a decision plus thin wiring."""
