"""The recorder: the code that runs in the training process on every log call."""
