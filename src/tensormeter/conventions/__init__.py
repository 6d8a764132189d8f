"""Rules shared by the training process, the agent and the server: names, limits, loss reasons and attempt numbers."""
