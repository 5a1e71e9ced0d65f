"""The commands, from a command line to an exit code."""

import logging

# Lightning imports matplotlib, whose remarks on its caches and fonts nobody asked for and nobody could act on.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
