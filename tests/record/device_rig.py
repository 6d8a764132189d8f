"""Devices that tests make up."""


class Proven:
    """A device of which a trial has shown that it can store into the ring (`view`), or that it cannot (None)."""

    def __init__(self, view):
        self.view = view
        self.verdict = "passed"

    def poll(self):
        pass

    def retire(self):
        pass
