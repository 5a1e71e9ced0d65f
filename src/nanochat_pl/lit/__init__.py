"""Old addresses that saved configs and notebooks may name; the code is in `training/`."""
