//! The `-o` options: what was typed, item by item.
//!
//! `-o` is for what mount(8) and fstab know: a list separated by commas, in which `\,` is a comma that belongs to a
//! value and `\\` a backslash. mount(8) adds options of its own (`rw,dev,suid,noauto,…`); those are accepted and mean
//! nothing here, as the mount is read-only, `nosuid` and `nodev` whatever is asked.

use std::path::PathBuf;

use crate::layer::whiteout::Prefix;
use crate::mount::Opens;
use crate::view::{Form, Owners};

/// The most threads that may be asked for.
const THREADS_MAX: usize = 64;

/// What mount(8), fstab and systemd write that has no meaning for this mount.
const MEANINGLESS: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "group",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "ro",
    "rw",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
];

/// How the process that reads the store is confined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Jail {
    /// As far as the system allows.
    #[default]
    Full,
    /// Not at all, to find faults.
    None,
}

/// What the `-o` options say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) form: Form,
    /// Whose numbers owners have.
    pub(super) owners: Owners,
    /// `None`: found out.
    pub(super) prefix: Option<Prefix>,
    pub(super) allow_other: bool,
    pub(super) noexec: bool,
    /// Mount also over a directory that holds something, and hide it.
    pub(super) nonempty: bool,
    /// `None`: as serves most.
    pub(super) opens: Option<Opens>,
    pub(super) fs_name: Option<String>,
    pub(super) threads: Option<usize>,
    pub(super) kind: Option<String>,
    pub(super) log_file: Option<PathBuf>,
    /// As `--metrics`.
    pub(super) metrics: Option<String>,
    pub(super) jail: Jail,
}

impl Options {
    /// Reads one `-o` argument; what it says counts over what was said before.
    ///
    /// # Errors
    /// What is wrong with it, in words for the user.
    pub(super) fn add(&mut self, list: &str) -> Result<(), String> {
        for item in split(list) {
            let (name, value) = match item.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (item.as_str(), None),
            };
            self.set(name, value)?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), String> {
        match name {
            "whiteouts" => {
                self.form = choice(name, value, &[("oci", Form::Oci), ("stored", Form::Stored)])?;
            }
            "uidmap" => {
                self.owners = choice(name, value, &[("stored", Owners::Stored), ("container", Owners::Container)])?;
            }
            "xattrs" => {
                let prefixes = [("auto", None), ("trusted", Some(Prefix::Trusted)), ("user", Some(Prefix::User))];
                self.prefix = choice(name, value, &prefixes)?;
            }
            "allow_other" => {
                no_value(name, value)?;
                self.allow_other = true;
            }
            "noexec" | "exec" => {
                no_value(name, value)?;
                self.noexec = name == "noexec";
            }
            "nonempty" => {
                no_value(name, value)?;
                self.nonempty = true;
            }
            "opens" => {
                let ways = [("once", Opens::Once), ("passthrough", Opens::Passthrough), ("each", Opens::Each)];
                self.opens = Some(choice(name, value, &ways)?);
            }
            "fsname" => self.fs_name = Some(wanted(name, value)?.to_owned()),
            "threads" => self.threads = Some(threads(name, value)?),
            "kind" => self.kind = Some(wanted(name, value)?.to_owned()),
            "log_file" => self.log_file = Some(PathBuf::from(wanted(name, value)?)),
            "metrics" => self.metrics = Some(wanted(name, value)?.to_owned()),
            "jail" => self.jail = choice(name, value, &[("full", Jail::Full), ("none", Jail::None)])?,
            "remount" => return Err("docker-fs cannot be remounted; unmount and mount".to_owned()),
            "comment" | "subtype" => {}
            _ if name.starts_with("x-") || name.starts_with("X-") => {}
            _ if MEANINGLESS.contains(&name) => no_value(name, value)?,
            _ => return Err(format!("unknown option -o {name}")),
        }
        Ok(())
    }
}

/// The items of a list, without the backslashes; empty ones are left out.
fn split(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        let escaped = if letter == '\\' { letters.next_if(|next| matches!(next, ',' | '\\')) } else { None };
        match (letter, escaped, items.last_mut()) {
            (',', None, _) => items.push(String::new()),
            (_, escaped, Some(item)) => item.push(escaped.unwrap_or(letter)),
            (_, _, None) => {}
        }
    }
    items.retain(|item| !item.is_empty());
    items
}

fn wanted<'a>(name: &str, value: Option<&'a str>) -> Result<&'a str, String> {
    value.filter(|value| !value.is_empty()).ok_or_else(|| format!("the option -o {name} wants a value: {name}=…"))
}

fn no_value(name: &str, value: Option<&str>) -> Result<(), String> {
    match value {
        None => Ok(()),
        Some(value) => Err(format!("the option -o {name} takes no value, but it has {value:?}")),
    }
}

fn choice<T: Copy>(name: &str, value: Option<&str>, choices: &[(&str, T)]) -> Result<T, String> {
    let value = wanted(name, value)?;
    choices.iter().find(|(word, _)| *word == value).map(|(_, choice)| *choice).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        format!("the option -o {name} is one of {}, not {value:?}", words.join(", "))
    })
}

fn threads(name: &str, value: Option<&str>) -> Result<usize, String> {
    let value = wanted(name, value)?;
    value
        .parse()
        .ok()
        .filter(|count| (1..=THREADS_MAX).contains(count))
        .ok_or_else(|| format!("the option -o {name} is a number from 1 to {THREADS_MAX}, not {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &str) -> Result<Options, String> {
        let mut options = Options::default();
        options.add(list).map(|()| options)
    }

    #[test]
    fn commas_separate_unless_escaped() {
        for (list, items) in [
            ("a,b", vec!["a", "b"]),
            ("", vec![]),
            (",a,,b,", vec!["a", "b"]),
            (r"fsname=a\,b,c", vec!["fsname=a,b", "c"]),
            (r"a\\,b", vec![r"a\", "b"]),
            (r"a\x\", vec![r"a\x\"]),
        ] {
            assert_eq!(split(list), items, "{list}");
        }
    }

    #[test]
    fn every_option_is_read() {
        let all = r"whiteouts=stored,uidmap=container,xattrs=user,allow_other,noexec,nonempty,opens=once,opens=each,fsname=a\,b,threads=3,kind=docker,log_file=/l,jail=none,metrics=h:1";
        assert_eq!(
            read(all),
            Ok(Options {
                form: Form::Stored,
                owners: Owners::Container,
                prefix: Some(Prefix::User),
                allow_other: true,
                noexec: true,
                nonempty: true,
                opens: Some(Opens::Each),
                fs_name: Some("a,b".to_owned()),
                threads: Some(3),
                kind: Some("docker".to_owned()),
                log_file: Some(PathBuf::from("/l")),
                metrics: Some("h:1".to_owned()),
                jail: Jail::None,
            })
        );
        assert_eq!(
            read("whiteouts=stored,whiteouts=oci,uidmap=container,uidmap=stored,xattrs=user,xattrs=auto,noexec,exec"),
            Ok(Options::default())
        );
    }

    #[test]
    fn what_mount_adds_means_nothing() {
        for list in MEANINGLESS.iter().chain(&["x-systemd.automount,x-gvfs-hide=1", "comment=a=b", "comment"]) {
            assert_eq!(read(list), Ok(Options::default()), "{list}");
        }
    }

    #[test]
    fn bad_options_are_named() {
        for (list, message) in [
            ("ro,wrong", "unknown option -o wrong"),
            ("wrong=1", "unknown option -o wrong"),
            ("ro,remount", "docker-fs cannot be remounted; unmount and mount"),
            ("nonempty=1", "the option -o nonempty takes no value, but it has \"1\""),
            ("metrics", "the option -o metrics wants a value: metrics=…"),
            ("ro=1", "the option -o ro takes no value, but it has \"1\""),
            ("allow_other=yes", "the option -o allow_other takes no value, but it has \"yes\""),
            ("whiteouts=aufs", "the option -o whiteouts is one of oci, stored, not \"aufs\""),
            ("uidmap=1000", "the option -o uidmap is one of stored, container, not \"1000\""),
            ("xattrs=none", "the option -o xattrs is one of auto, trusted, user, not \"none\""),
            ("xattrs", "the option -o xattrs wants a value: xattrs=…"),
            ("jail=half", "the option -o jail is one of full, none, not \"half\""),
            ("fsname=", "the option -o fsname wants a value: fsname=…"),
            ("threads=0", "the option -o threads is a number from 1 to 64, not \"0\""),
            ("threads=65", "the option -o threads is a number from 1 to 64, not \"65\""),
            ("threads=-1", "the option -o threads is a number from 1 to 64, not \"-1\""),
        ] {
            assert_eq!(read(list), Err(message.to_owned()), "{list}");
        }
    }
}
