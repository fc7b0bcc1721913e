"""`python -m trainer`."""

from modelstore import exit_cleanly
from trainer.cli import main

exit_cleanly(main)
