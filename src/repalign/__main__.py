"""`python -m repalign`."""

from repalign.cli import main

main()
