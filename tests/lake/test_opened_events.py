"""What was taken is given back as it was taken: no library reads it and writes it anew."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import orjson
import pytest

from lake import HttpBatch
from lake.openedevents import OpenedEvents
from service.runtime import Runtime

TYPE = {
    "name": "Form",
    "type": "object",
    "properties": {
        "answers": {"type": "object"},
        "open_answers": {"type": "object", "anonymous": True, "because": "a test"},
        "parts": {"type": "array"},
    },
}
FORMS = [
    '{"a":1.50,"b":1e5,"c":-0.0,"d":1E+2}',
    '{"big":123456789012345678901234567890,"small":0.1000000000000000055511151231257827}',
    '{"b":1,"a":2}',
    '{"text":"\\u00e9\\/\\ud83d\\ude00"}',
    '{"spaced" : [ 1 , 2 ]}',
    '{"deep":' + "[" * 200 + "]" * 200 + "}",
]


@pytest.mark.parametrize("form", FORMS)
def test_objects_and_arrays_come_out_as_the_bytes_that_were_taken(world: Runtime, form: str) -> None:
    """Float forms, digits beyond a double's, order, escapes, spaces, nesting that one library does not write."""
    world.lake.types.register(TYPE)
    head = {"specversion": "1.0", "source": "s", "type": "Form", "subject": "ann", "id": "1"}
    head["time"] = datetime.now(UTC).isoformat()
    data = f'{{"answers":{form},"open_answers":{form},"parts":[{form}]}}'
    line = f'{json.dumps(head)[:-1]},"data":{data}}}'.encode()
    done = world.lake.ingestor().run(HttpBatch([line], "k", world.lake.types))
    assert (done.events, done.reasons) == (1, ())
    files, kind = world.lake.events.files(), world.lake.types.get("Form")
    (event,) = OpenedEvents(world.lake.replay(), kind, files, 1 << 24).each()
    assert event is not None
    written = orjson.dumps(event).decode()
    for name, value in (("answers", form), ("open_answers", form), ("parts", f"[{form}]")):
        assert f'"{name}":{value}' in written
    again = world.lake.ingestor().run(HttpBatch([written.encode()], "again", world.lake.types))
    assert (again.events, again.reasons) == (1, ())
