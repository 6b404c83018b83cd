"""Fuzzes every door of a lake: any bytes, against any schema that registration accepts.

What comes through a door is stored, or is one dead letter with its reason; its neighbours are stored, and all
of it is written and read again (`tests.lake.anydoor`). Schemas and events are drawn from the fuzzer's bytes
(`tests.lake.anytrial`), so that most inputs get past the readers.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from pathlib import Path

import atheris
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

with atheris.instrument_imports(include=["lake", "service.batches"]):
    from tests.lake.anytrial import DOORS, tried

from tests.world import make_world

_SEEDS = 64
_SEED_BYTES = 4096
_LONGEST_SECONDS = 60


def main() -> None:
    """Runs for the seconds given, or until it is stopped.

    What it found worth keeping stays in the folder, where one is given, and the next run begins with it;
    so does an input that broke something, which is run alone by its path: `fuzz.doors 0 PATH`.
    """
    seconds = sys.argv[1] if len(sys.argv) > 1 else "0"
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    place = Path(sys.argv[2]) if len(sys.argv) > 2 else work / "corpus"
    options = [f"-max_total_time={seconds}", f"-max_len={_SEED_BYTES}", f"-timeout={_LONGEST_SECONDS}"]
    if not place.is_file():
        place.mkdir(parents=True, exist_ok=True)
        for number in range(_SEEDS):
            (place / f"seed-{number}").write_bytes(random.Random(number).randbytes(_SEED_BYTES))
        options += [f"-artifact_prefix={place}/", "-len_control=0", "-rss_limit_mb=4096"]
    logging.disable(logging.CRITICAL)
    world = make_world(work / "lake")

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(door=st.sampled_from(sorted(DOORS)), data=st.data())
    def trial(door: str, data: st.DataObject) -> None:
        tried(world, door, data)

    atheris.Setup([sys.argv[0], *options, str(place)], trial.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
