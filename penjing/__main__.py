"""``python -m penjing``: the command line."""

from penjing.cli import main

main()
