"""The run in the training process: start, configuration, signals and exit."""
