//! `/proc/self/mountinfo`: what is mounted where (proc_pid_mountinfo(5)).
//!
//! ```text
//! 36 35 98:0 /subdirectory /mnt\040point rw,noatime master:1 - fuse.docker-fs source rw,user_id=0
//! │  │  │    │             │                                   │                        └ who mounted it
//! │  │  │    │             │                                   └ type
//! │  │  │    │             └ mount point, from this process' root
//! │  │  │    └ the directory of the file system that is mounted
//! │  │  └ device of the file system
//! │  └ ID of the mount that it lies on
//! └ ID
//! ```
//!
//! Nothing is asked of the file systems themselves, so a dead or hanging one is no trouble. Space, tab, newline and
//! backslash are written in octal.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A device number, major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device(u32, u32);

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.0, self.1)
    }
}

/// A mount as lists tell it from all others that there are: another may have the number after it, and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    id: u64,
    pub(crate) device: Device,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    id: u64,
    parent: u64,
    device: Device,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    fs_type: Vec<u8>,
    owner: Option<u32>,
}

/// A directory by file system instead of by path: equal for two paths that lead to it through bind mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    device: Device,
    /// The path within the file system.
    path: PathBuf,
}

/// All mounts of this process' mount namespace.
#[derive(Debug)]
pub(crate) struct Mounts(Vec<Mount>);

impl Mount {
    pub(crate) fn number(&self) -> Number {
        Number { id: self.id, device: self.device }
    }

    /// Where it is mounted.
    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    /// Whether it is a mount of this program.
    pub(crate) fn is_ours(&self) -> bool {
        self.fs_type == super::TYPE.as_bytes()
    }

    /// The number of the user who mounted it, of a FUSE mount.
    pub(crate) fn owner(&self) -> Option<u32> {
        self.owner
    }

    /// Whether it is a place that waits for a mount, which whoever looks into it waits for too (autofs(5)).
    pub(crate) fn is_automount(&self) -> bool {
        self.fs_type == b"autofs"
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let mut device = fields.next()?.split(|byte| *byte == b':');
        let device = Device(number(device.next()?)?, number(device.next()?)?);
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        // Any number of optional fields ends with a single hyphen.
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let fs_type = fields.next()?.to_vec();
        let options = fields.nth(1).unwrap_or_default();
        let owner = options.split(|byte| *byte == b',').find_map(|option| number(option.strip_prefix(b"user_id=")?));
        Some(Self { id, parent, device, root, point, fs_type, owner })
    }

    fn identity_of(&self, path: &Path) -> Option<Identity> {
        let below = path.strip_prefix(&self.point).ok()?;
        let path = if below.as_os_str().is_empty() { self.root.clone() } else { self.root.join(below) };
        Some(Identity { device: self.device, path })
    }
}

impl Identity {
    /// Whether this is `other` or lies in it.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.device == other.device && self.path.starts_with(&other.path)
    }
}

impl Mounts {
    /// The mounts as they are.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub(crate) fn read() -> io::Result<Self> {
        std::fs::read("/proc/self/mountinfo").map(|text| Self::parse(&text))
    }

    /// The mounts that a text in the form of `/proc/self/mountinfo` tells; lines of another form are left out.
    pub(crate) fn parse(text: &[u8]) -> Self {
        Self(text.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect())
    }

    /// The mount that a path without symbolic links lies on, found as the kernel does: downwards from the root, so
    /// that what another mount covers is not taken.
    pub(crate) fn holding(&self, path: &Path) -> Option<&Mount> {
        let is_first = |mount: &&Mount| !self.0.iter().any(|other| other.id == mount.parent && other.id != mount.id);
        let mut holds: Vec<&Mount> = self.0.iter().filter(|mount| path.starts_with(&mount.point)).collect();
        let mut current =
            *holds.iter().filter(|mount| is_first(mount)).max_by_key(|mount| mount.point.components().count())?;
        loop {
            holds.retain(|mount| mount.id != current.id);
            let on_it = holds.iter().filter(|mount| mount.parent == current.id);
            match on_it.min_by_key(|mount| mount.point.components().count()) {
                Some(next) => current = next,
                None => return Some(current),
            }
        }
    }

    /// The topmost mount whose mount point is exactly this path.
    pub(crate) fn at(&self, point: &Path) -> Option<&Mount> {
        self.holding(point).filter(|mount| mount.point == point)
    }

    /// The mount of this number, wherever it is, covered or not.
    pub(crate) fn find(&self, number: Number) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.number() == number)
    }

    /// What a path without symbolic links is within its file system.
    pub(crate) fn identity(&self, path: &Path) -> Option<Identity> {
        self.holding(path)?.identity_of(path)
    }

    /// All that can be reached below a directory: itself, and what is mounted below it, covered or not.
    pub(crate) fn extent(&self, dir: &Path) -> Vec<Identity> {
        let below = self.0.iter().filter(|mount| mount.point != dir && mount.point.starts_with(dir));
        self.identity(dir).into_iter().chain(below.filter_map(|mount| mount.identity_of(&mount.point))).collect()
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The path with its octal escapes undone.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.split_at_checked(3)).flatten();
        let decoded = octal.and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 8).ok()?, after))
        });
        let (byte, after) = decoded.unwrap_or((*first, after));
        bytes.push(byte);
        rest = after;
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw,nosuid shared:5 master:2 - proc proc rw
30 22 8:2 / /var rw shared:7 - ext4 /dev/sda2 rw
31 22 8:2 /lib/docker /srv/bound rw shared:7 - ext4 /dev/sda2 rw
32 30 0:50 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw,lowerdir=a
33 22 0:51 / /mnt/a\\040b\\134c ro,nosuid,nodev - fuse.docker-fs /var/lib/docker ro,user_id=0
34 33 0:52 / /mnt/a\\040b\\134c rw - tmpfs tmpfs rw
35 22 0:53 / /var rw - tmpfs covers rw
garbage
";

    fn sample() -> Mounts {
        Mounts::parse(SAMPLE.as_bytes())
    }

    #[test]
    fn lines_are_read_and_garbage_is_not() {
        assert_eq!(sample().0.len(), 8);
        assert_eq!(
            sample().0[5],
            Mount {
                id: 33,
                parent: 22,
                device: Device(0, 51),
                root: PathBuf::from("/"),
                point: PathBuf::from(r"/mnt/a b\c"),
                fs_type: b"fuse.docker-fs".to_vec(),
                owner: Some(0),
            }
        );
        assert_eq!(sample().0[6].owner, None);
    }

    #[test]
    fn escapes_are_octal() {
        for (text, path) in
            [(r"/a\040b", "/a b"), (r"/\011\012\134", "/\t\n\\"), (r"/a\9", r"/a\9"), (r"\04", r"\04"), ("", "")]
        {
            assert_eq!(unescape(text.as_bytes()), PathBuf::from(path), "{text}");
        }
    }

    #[test]
    fn a_path_lies_on_what_is_on_top() {
        let mounts = sample();
        let on = |path: &str| mounts.holding(Path::new(path)).map(|mount| mount.id);
        assert_eq!(on("/"), Some(22));
        assert_eq!(on("/varnish"), Some(22));
        assert_eq!(on("/srv/bound/x"), Some(31));
        assert_eq!(on(r"/mnt/a b\c/d"), Some(34));
        assert_eq!(on("relative"), None);
        assert_eq!(mounts.at(Path::new("/srv/bound")).map(|mount| mount.id), Some(31));
        assert_eq!(mounts.at(Path::new("/srv/bound/x")), None);
    }

    #[test]
    fn a_bind_mount_has_the_identity_of_what_it_shows() {
        let uncovered = SAMPLE.replace("35 22 0:53", "35 99 0:53").replace("/var rw - tmpfs covers", "/other rw - t t");
        let mounts = Mounts::parse(uncovered.as_bytes());
        let identity = |path: &str| mounts.identity(Path::new(path)).unwrap();
        assert_eq!(identity("/var/lib/docker"), identity("/srv/bound"));
        assert_eq!(identity("/var/lib/docker/image"), identity("/srv/bound/image"));
        assert!(identity("/srv/bound/x").is_within(&identity("/var/lib")));
        assert!(!identity("/var/lib").is_within(&identity("/srv/bound/x")));
        assert!(!identity("/srv").is_within(&identity("/var")));
        let merged = identity("/var/lib/docker/overlay2/x/merged");
        assert_eq!(mounts.extent(Path::new("/var/lib/docker")), [identity("/srv/bound"), merged]);
    }
}
