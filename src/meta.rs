//! One file's attributes, as a tree stores them and as the mount shows them.

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// A point in time as file systems store it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds since the start of that second, below 10^9.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The nanosecond behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        match self.nanoseconds {
            0..=999_999_998 => Self { nanoseconds: self.nanoseconds.saturating_add(1), ..self },
            _ => Self { seconds: self.seconds.saturating_add(1), nanoseconds: 0 },
        }
    }
}

/// The device number of a device file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// Tells a file from others of its file system, also from one that has its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The inode's number.
    pub inode: u64,
    /// When it was made, where the file system tells.
    pub created: Timestamp,
}

/// What `statx` tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// The type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: at most `0o7777`.
    pub permissions: u16,
    /// The owning user.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// How many names the file has. A union's directory of several layers has 1, as kernel overlayfs says.
    pub links: u32,
    /// The device that a device file stands for.
    pub rdev: DeviceNumber,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// The preferred size of a transfer, in bytes.
    pub block_size: u32,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of the attributes.
    pub changed: Timestamp,
    /// When the file was made, where its file system tells; tells apart two files that had one number in turn.
    pub created: Timestamp,
    /// The file's number within its layer; names of one layer with the same number are hard links of one file.
    pub inode: u64,
    /// Which part of its file system numbers the file: a subvolume, or the whole. Zero for what no file system holds.
    pub volume: u64,
    /// Whether the file is known to have no extended attributes at all.
    pub bare: bool,
}

impl Meta {
    /// A directory or file of the view's own making, with one time for all three.
    #[must_use]
    pub fn made_up(kind: Kind, permissions: u16, time: Timestamp, size_bytes: u64) -> Self {
        Self {
            kind,
            permissions,
            uid: 0,
            gid: 0,
            links: 1,
            rdev: DeviceNumber::default(),
            size_bytes,
            blocks: size_bytes.div_ceil(512),
            block_size: 4096,
            accessed: time,
            modified: time,
            changed: time,
            created: Timestamp::default(),
            inode: 0,
            volume: 0,
            bare: true,
        }
    }

    /// What tells this file from others.
    #[must_use]
    pub fn id(&self) -> FileId {
        FileId { inode: self.inode, created: self.created }
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
}
