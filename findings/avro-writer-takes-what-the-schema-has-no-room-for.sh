#!/usr/bin/env bash
# A popular Avro writer takes values that the schema has no room for, and says nothing.
#
# Guess: an Avro `int` refuses 2^31 and 1.7, a `float` refuses 1e300, and a union of int and float keeps 2^40 + 1
#   whole or refuses it.
# Seen (fastavro 1.13.1, schemaless writer and reader): 2^31 is written as a varint that other readers of `int`
#   cannot hold; 1.7 becomes 1; 1e300 becomes infinity; the union falls to `float` and 2^40 + 1 loses its last
#   digits. A `long` beyond 64 bits and a decimal beyond its precision are refused, as one would expect of all.
# What to do: validate before writing (`fastavro.validate` refuses 2^31 for an int), or declare `long`, `double`.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q --disable-pip-version-check fastavro==1.13.1
env/bin/python - <<'PY'
import io
import math
import fastavro

def there_and_back(schema, value):
    parsed, body = fastavro.parse_schema(schema), io.BytesIO()
    fastavro.schemaless_writer(body, parsed, value)
    body.seek(0)
    return fastavro.schemaless_reader(body, parsed)

seen = {
    "int 2^31": there_and_back("int", 2**31),
    "int 1.7": there_and_back("int", 1.7),
    "float 1e300": there_and_back("float", 1e300),
    "int or float 2^40 + 1": there_and_back(["int", "float"], 2**40 + 1),
}
print(seen)
assert seen["int 2^31"] == 2**31 and seen["int 1.7"] == 1 and math.isinf(seen["float 1e300"])
assert isinstance(seen["int or float 2^40 + 1"], float) and seen["int or float 2^40 + 1"] == 2.0**40
try:
    there_and_back("long", 2**63)
except OverflowError:
    print("a long beyond 64 bits is refused")
else:
    raise AssertionError("2^63 was taken as a long")
PY
