"""The recorder: the code that runs in the training process during a log call."""
