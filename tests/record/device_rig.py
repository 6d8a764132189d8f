"""Devices that tests make up."""


class Proven:
    """A device after its trial: it can store into the ring (`view`), or it cannot (None)."""

    def __init__(self, view):
        self.view = view
        self.verdict = "passed"

    def poll(self):
        pass

    def retire(self):
        pass
