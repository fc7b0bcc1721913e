"""The trainer's tests run with the process settings that its command line makes, before torch is imported."""

from trainer.cli import prepare_process

prepare_process()
