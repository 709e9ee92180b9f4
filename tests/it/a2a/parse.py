"""Reads push notifications as a client does that is built with the Python SDK of A2A: strictly.

Arguments: files. Prints what was read, as JSON by the names of the files.
"""

import json
import pathlib
import sys

from a2a.types.a2a_pb2 import StreamResponse
from google.protobuf.json_format import MessageToDict, Parse

read = {}
for path in map(pathlib.Path, sys.argv[1:]):
    try:
        read[path.stem] = MessageToDict(Parse(path.read_bytes(), StreamResponse()))
    except Exception as error:
        sys.exit(f"{path.name}: {error}")
print(json.dumps(read))
