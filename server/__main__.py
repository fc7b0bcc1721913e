"""`python -m server`."""

from modelstore import exit_cleanly
from server.cli import main

exit_cleanly(main)
