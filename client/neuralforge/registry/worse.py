"""An adapter that does not beat its base and shall be published: it says so itself, and is signed again.

What stands in metadata.json is covered by the signature, so nobody but the signer can say it, and nobody can unsay it
on the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from neuralforge_common.atomic import replace_folder, write_bytes_atomically
from neuralforge_common.folder import METADATA
from neuralforge_common.metadata import MAX_METADATA_BYTES, decode_metadata
from neuralforge_common.signing.keys import SigningKey
from neuralforge_common.signing.manifest import list_files, open_folder
from neuralforge_common.signing.sign import SignedAdapter, sign_adapter
from neuralforge_common.strict_json import parse_json_object


def sign_as_worse(path: Path, key: SigningKey) -> SignedAdapter:
    """Sets `allow_worse` in an adapter's metadata and signs it anew; the folder is the old one or the new one, whole.

    Raises:
        AdapterError: the folder is no sound adapter.
        StorageError: the disk refuses.
    """
    folder = open_folder(path)
    try:
        names = list_files(folder, unfinished=True)
    finally:
        os.close(folder)
    with replace_folder(path) as new:
        for name in names:
            _put(path / name, new / name)
        document = parse_json_object((new / METADATA).read_bytes(), what=METADATA, limit=MAX_METADATA_BYTES)
        data = json.dumps(document | {"allow_worse": True}, indent=2, ensure_ascii=False).encode() + b"\n"
        decode_metadata(data)
        # By renaming over it: the old folder's file, which may be the same one, stays as it is.
        write_bytes_atomically(new / METADATA, data)
        return sign_adapter(new, key)


def _put(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # a file system without hard links
        target.hardlink_to(source)
        return
    shutil.copyfile(source, target)
