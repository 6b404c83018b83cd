"""Contract suites: every adapter of a port passes the same tests.

A test module subclasses a contract and says how to make the adapter; pytest is needed only here.
"""

from keys.testing.custodian import CustodianContract
from keys.testing.pagestore import PageStoreContract

__all__ = ["CustodianContract", "PageStoreContract"]
