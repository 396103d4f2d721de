"""Whether two systems show the same tree: every name, attribute, extended attribute, target and byte."""

import hashlib
import os
import stat

_PIECE = 1 << 20


def manifest(root):
    """A line for each path. What a file system is free to choose is left out: numbers of inodes and devices, sizes and
    links of directories, access times. Hard links are told by the first path of their file."""
    lines, first = {}, {}
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted((*directories, *files)):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            shown = os.path.relpath(path, root)
            fields = [oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, _xattrs(path)]
            if not stat.S_ISDIR(status.st_mode):
                link = first.setdefault(status.st_ino, shown)
                fields += [status.st_size, status.st_nlink, status.st_rdev, link]
                if link == shown:
                    fields.append(_content(path, status))
            lines[shown] = " ".join(map(str, fields))
    return lines


def _xattrs(path):
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _content(path, status):
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode):
        return ""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def differences(expected, found, most=5):
    """In words, the first few."""
    words = []
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            words.append(f"{path}: {found.get(path, 'missing')}, not {expected.get(path, 'missing')}")
    return words[:most] + ([f"and {len(words) - most} more"] if len(words) > most else [])
