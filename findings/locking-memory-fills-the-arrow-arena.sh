#!/usr/bin/env bash
# A process that locks its memory and makes one small Arrow array takes a gigabyte, and seconds to lock it.
#
# Guess: `mlockall(MCL_CURRENT | MCL_FUTURE)` costs what the process uses; an array of a thousand numbers is 8 kB.
# Seen (pyarrow 26.0.1 on Linux): its allocator maps a gigabyte readable and writable at the first array and touches
#   almost none of it. Locking fills every page of every mapping: 1139 MiB resident in place of 45, and four seconds of
#   system time in one call, twenty on a busy host.
# What to do: add MCL_ONFAULT (Linux 4.4), which locks a page when it is touched; or set ARROW_DEFAULT_MEMORY_POOL=system.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check pyarrow==26.0.1
cat > resident.py <<'PY'
import ctypes
import re
import sys
from pathlib import Path

import pyarrow as pa

pa.array(range(1000))
refused = ctypes.CDLL(None, use_errno=True).mlockall(int(sys.argv[1])) if sys.argv[1] != "0" else 0
kilobytes = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])
print(-1 if refused else kilobytes // 1024)
PY
plain=$(env/bin/python resident.py 0)
locked=$(env/bin/python resident.py 3)
on_fault=$(env/bin/python resident.py 7)
system=$(ARROW_DEFAULT_MEMORY_POOL=system env/bin/python resident.py 3)
echo "MiB resident: not locked $plain, locked $locked, locked on fault $on_fault, locked with the system's allocator $system"
if [ "$locked" = -1 ]; then echo "this user may not lock memory: nothing was seen"; exit 0; fi
[ "$locked" -gt 1000 ] && [ "$on_fault" -lt 400 ] && [ "$plain" -lt 400 ]
