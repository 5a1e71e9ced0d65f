"""From what a user wrote to a config that is known to be right: nothing here imports torch."""
