"""`python -m clients`."""

from clients.cli import main
from modelstore import exit_cleanly

exit_cleanly(main)
