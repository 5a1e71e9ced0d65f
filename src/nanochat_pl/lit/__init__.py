"""The old home of what saved configs and notebooks may name; `training/` has the code."""
