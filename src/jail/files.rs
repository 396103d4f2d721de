//! Landlock: which files may be opened, and for what.
//!
//! Rules are tied to open directories and not to paths, so they hold for private clones, which have no path. What is asked
//! about files (attributes, links, extended attributes) is not Landlock's business; that they are out of reach is the
//! root's.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{CWD, Mode, OFlags};

use super::{DEVICE, Outcome};

/// The newest version of Landlock that this was tried with (Linux 6.15). Of older kernels as much is asked as they know.
const NEWEST: ABI = ABI::V7;

/// Denies this thread all files but those below these directories, and the device; ports, signals and abstract sockets too,
/// where the kernel's Landlock knows of them.
pub(super) fn restrict(store: &[BorrowedFd<'_>]) -> Outcome {
    let device = open_device().map_err(super::why)?;
    let status = rules(store, &device).map_err(|error| error.to_string())?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(None),
        RulesetStatus::PartiallyEnforced => {
            Ok(Some(format!("as far as this kernel's goes ({})", version(status.landlock))))
        }
        RulesetStatus::NotEnforced => Err(version(status.landlock)),
    }
}

fn open_device() -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, DEVICE, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn rules(store: &[BorrowedFd<'_>], device: &OwnedFd) -> Result<RestrictionStatus, RulesetError> {
    // With passthrough the kernel opens a file in this process' name when a user starts it as a program.
    let read = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let use_device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let directories = store.iter().map(|directory| Ok::<_, RulesetError>(PathBeneath::new(directory, read)));
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(directories)?
        .add_rule(PathBeneath::new(device, use_device))?
        .restrict_self()
}

fn version(status: LandlockStatus) -> String {
    match status {
        LandlockStatus::NotImplemented => {
            "Landlock is not available (a kernel without it, or a filter of system calls)".to_owned()
        }
        LandlockStatus::NotEnabled => "the kernel was started without Landlock (lsm=)".to_owned(),
        LandlockStatus::Available { effective_abi, .. } => format!("version {}", effective_abi as i32),
    }
}
