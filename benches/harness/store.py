"""Writes a data root of Docker's classic store with overlay2, as far as reading it goes.

    <root>/image/overlay2/repositories.json
    <root>/image/overlay2/imagedb/content/sha256/<image>
    <root>/image/overlay2/layerdb/sha256/<chain>/{diff,size,cache-id,parent,tar-split.json.gz}
    <root>/overlay2/<cache-id>/{diff/,link,lower,committed,work/}
    <root>/overlay2/l/<26 characters> -> ../<cache-id>/diff

Image IDs are the hashes of configs, chain IDs follow from diff IDs. Diff IDs are drawn, since no tar is made; they are
the same at each run.
"""

import base64
import gzip
import hashlib
import json
import os
from pathlib import Path

CREATED = "2025-01-02T03:04:05Z"
_EMPTY_GZIP = gzip.compress(b"", mtime=0)


def _sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


class Layer:
    """A layer that was written. IDs without `sha256:`; `below` is the layer that it lies upon, or None."""

    def __init__(self, below, diff_id, cache_id, link, overlay2):
        self.below = below
        self.diff_id = diff_id
        self.chain_id = _sha256(f"sha256:{below.chain_id} sha256:{diff_id}") if below else diff_id
        self.link = link
        self.directory = overlay2 / cache_id
        self.diff = self.directory / "diff"
        self.work = self.directory / "work"

    def stack(self):
        """This layer and those below, top first."""
        return [self, *(self.below.stack() if self.below else [])]

    def links(self):
        """The stack as overlayfs options name it from the directory `overlay2`."""
        return ":".join(f"l/{layer.link}" for layer in self.stack())


class Store:
    """A data root in the making. Layers and images are on disk at once, names with `finish`."""

    def __init__(self, root):
        self.root = Path(root)
        self.overlay2 = self.root / "overlay2"
        self.image_dir = self.root / "image/overlay2"
        self._drawn = 0
        self._repositories = {}
        for directory in ("imagedb/content/sha256", "imagedb/metadata/sha256", "layerdb/sha256", "layerdb/mounts"):
            (self.image_dir / directory).mkdir(parents=True)
        (self.overlay2 / "l").mkdir(parents=True)
        self.root.chmod(0o710)

    def _draw(self, what):
        self._drawn += 1
        return _sha256(f"{what} {self._drawn}")

    def layer(self, below=None):
        """Adds an empty layer upon another; its files go to `diff`."""
        link = base64.b32encode(bytes.fromhex(self._draw("link"))).decode()[:26]
        layer = Layer(below, self._draw("diff"), self._draw("cache"), link, self.overlay2)
        layer.diff.mkdir(parents=True)
        (self.overlay2 / "l" / link).symlink_to(f"../{layer.directory.name}/diff")
        fields = {"diff": f"sha256:{layer.diff_id}", "cache-id": layer.directory.name, "size": "0"}
        (layer.directory / "link").write_text(link)
        if below:
            fields["parent"] = f"sha256:{below.chain_id}"
            (layer.directory / "lower").write_text(below.links())
            layer.work.mkdir()
            (below.directory / "committed").touch()
        entry = self._entry(layer)
        entry.mkdir(mode=0o700)
        for name, text in fields.items():
            (entry / name).write_text(text)
        (entry / "tar-split.json.gz").write_bytes(_EMPTY_GZIP)
        return layer

    def _entry(self, layer):
        return self.image_dir / "layerdb/sha256" / layer.chain_id

    def measure(self, layer):
        """Writes the size that Docker would: what its regular files hold, hard links once."""
        sizes = {}
        for directory, _, names in os.walk(layer.diff):
            for name in names:
                status = os.lstat(os.path.join(directory, name))
                sizes[status.st_ino] = status.st_size
        (self._entry(layer) / "size").write_text(str(sum(sizes.values())))

    def image(self, name, top, commands=()):
        """Adds an image with a familiar name such as `app:1`; `commands` made its layers, base first."""
        stack = top.stack()[::-1]
        commands = list(commands) or [f"COPY layer-{number} /" for number in range(len(stack))]
        config = json.dumps({
            "architecture": "amd64",
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"], "Labels": {"name": name}},
            "created": CREATED,
            "history": [{"created": CREATED, "created_by": command} for command in commands],
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in stack]},
        })
        (self.image_dir / "imagedb/content/sha256" / _sha256(config)).write_text(config)
        self._repositories.setdefault(name.rsplit(":", 1)[0], {})[name] = f"sha256:{_sha256(config)}"

    def finish(self):
        text = json.dumps({"Repositories": self._repositories})
        (self.image_dir / "repositories.json").write_text(text)
