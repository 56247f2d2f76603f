"""``python -m nexios_trio.cli``."""

from nexios_trio.cli import main

main(prog_name="nexios-trio")
