"""The recorder: the code that a log call runs in the training process."""
