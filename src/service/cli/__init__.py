"""The command line: `shredlake NOUN VERB`. Data on stdout, messages on stderr.

Exit codes: 0 done · 1 error · 2 wrong use · 3 incomplete · 4 blocked by a legal hold.
"""

from service.cli.main import app, main

__all__ = ["app", "main"]
