"""``python -m nexios_trio.cli``."""

from nexios_trio.cli import main

if __name__ == "__main__":
    main(prog_name="nexios-trio")
