"""Rules that the training process, the agent and the server share: names, limits, reasons of losses, attempt numbers."""
