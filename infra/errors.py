"""Errors of the servers' own scripts."""


class InfraError(Exception):
    """A server cannot be had or does not start; the text says what to do."""


class NotAvailable(InfraError):
    """This machine lacks what the server needs; tests that need it are skipped with this text."""
