"""Benchmarks: ours against a peer, in alternation, on one machine. Run them by scripts/bench."""
