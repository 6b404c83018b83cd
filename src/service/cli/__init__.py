"""The command line: `shredlake NOUN VERB`. Data on stdout, messages on stderr.

Exit codes: 0 done · 1 error · 2 wrong use · 3 incomplete · 4 blocked by a legal hold.
"""

import gc

_collects = gc.isenabled()
# What modules define stays: looking for garbage among it, now or at the end, is a sixth of a command's time.
gc.disable()
try:
    from service.cli.main import app, main

    gc.freeze()
finally:
    if _collects:
        gc.enable()

__all__ = ["app", "main"]
