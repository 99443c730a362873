"""``python -m avops``."""

from avops.cli.main import entry

entry()
