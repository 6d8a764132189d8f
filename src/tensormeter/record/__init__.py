"""The recorder: everything that happens inside a log call, in the training process."""
