"""Training with Lightning: modules, data modules, callbacks, loggers, the record of a run."""
