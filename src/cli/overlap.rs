//! Refuses a mount point that is the source, lies in it or around it.
//!
//! Serving such a mount would read through itself and wait for itself for ever. Paths are compared without their
//! symbolic links, and then by file system, so that a bind mount that shows part of the source elsewhere is seen too.
//! What is mounted below the source (a volume, a disk for `overlay2`) counts as part of it.

use std::path::Path;

use crate::mount::Mounts;

/// How a mount point meets the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Same,
    Inside,
    Around,
}

/// Says how two directories overlap, in words for the user; `None` where they do not. Both paths are without symbolic
/// links.
pub(super) fn trouble(mounts: &Mounts, source: &Path, mount_point: &Path) -> Option<String> {
    let (point, store) = (mount_point.display(), source.display());
    let relation = by_path(source, mount_point);
    let (words, way) = match (relation, by_file_system(mounts, source, mount_point)) {
        (Some(relation), _) => (relation.words(), ""),
        (None, Some(relation)) => (relation.words(), " by way of another mount"),
        (None, None) => return None,
    };
    Some(format!(
        "the mount point {point} {words} the source {store}{way}: reading it would wait for itself; mount elsewhere"
    ))
}

impl Relation {
    fn words(self) -> &'static str {
        match self {
            Self::Same => "is",
            Self::Inside => "lies in",
            Self::Around => "contains",
        }
    }
}

fn by_path(source: &Path, mount_point: &Path) -> Option<Relation> {
    match (mount_point.starts_with(source), source.starts_with(mount_point)) {
        (true, true) => Some(Relation::Same),
        (true, false) => Some(Relation::Inside),
        (false, true) => Some(Relation::Around),
        (false, false) => None,
    }
}

fn by_file_system(mounts: &Mounts, source: &Path, mount_point: &Path) -> Option<Relation> {
    let point = mounts.identity(mount_point)?;
    mounts.extent(source).iter().find_map(|part| match (point.is_within(part), part.is_within(&point)) {
        (true, true) => Some(Relation::Same),
        (true, false) => Some(Relation::Inside),
        (false, true) => Some(Relation::Around),
        (false, false) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 8:2 / /var/lib/docker rw - ext4 /dev/sda2 rw
3 1 8:2 /overlay2 /srv/layers rw - ext4 /dev/sda2 rw
4 2 8:3 /vol /var/lib/docker/volumes/v rw - ext4 /dev/sda3 rw
5 1 8:3 / /data rw - ext4 /dev/sda3 rw
6 1 8:1 /home /export rw - ext4 /dev/sda1 rw
";

    #[test]
    fn directories_overlap_by_path_and_by_file_system() {
        let mounts = Mounts::parse(MOUNTS);
        for (source, point, expected) in [
            ("/var/lib/docker", "/var/lib/docker", Some("is the source")),
            ("/var/lib/docker", "/var/lib/docker/tmp/m", Some("lies in the source")),
            ("/var/lib/docker", "/var/lib", Some("contains the source")),
            ("/var/lib/docker", "/", Some("contains the source")),
            ("/var/lib/docker", "/var/lib/docker2", None),
            ("/var/lib/docker", "/mnt", None),
            ("/var/lib/docker", "/srv/layers", Some("lies in the source /var/lib/docker by way of another mount")),
            ("/var/lib/docker", "/srv/layers/x", Some("lies in the source /var/lib/docker by way of another mount")),
            ("/var/lib/docker", "/srv", None),
            ("/var/lib/docker", "/data/vol/m", Some("lies in the source /var/lib/docker by way of another mount")),
            ("/var/lib/docker", "/data/other", None),
            ("/var/lib/docker", "/data", Some("contains the source /var/lib/docker by way of another mount")),
            ("/home/a/docker", "/export/a", Some("contains the source /home/a/docker by way of another mount")),
            ("/home/a/docker", "/export/a/docker", Some("is the source /home/a/docker by way of another mount")),
            ("/home/a/docker", "/export/b", None),
        ] {
            let found = trouble(&mounts, Path::new(source), Path::new(point));
            match expected {
                None => assert_eq!(found, None, "{source} {point}"),
                Some(words) => {
                    let found = found.unwrap_or_default();
                    assert!(found.contains(words), "{source} {point}: {found}");
                }
            }
        }
    }
}
