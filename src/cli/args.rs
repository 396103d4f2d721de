//! Arguments, in two steps: what was typed (`Typed`, read by clap), then what is to be done ([`Command`]).
//!
//! The form is that of mount helpers, `SOURCE MOUNTPOINT -o …`, so that `mount -t fuse.docker-fs` works. Paths become
//! absolute here, before the background process leaves the directory that it was started in.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;

use super::Failure;
use super::help;
use super::metrics;
use super::options::Options;
use super::words;
use crate::mount::How;
use crate::store;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Print a text: the help or the version.
    Print(String),
    Mount(Box<Mount>),
    Unmount(Unmount),
}

/// A mount to be made. All paths are absolute.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// `None`: the machine's own store.
    pub(super) source: Option<PathBuf>,
    pub(super) mount_point: PathBuf,
    pub(super) options: Options,
    pub(super) place: Place,
    pub(super) level: LevelFilter,
    /// Where the figures are told, if anywhere: the first of these addresses that can be bound.
    pub(super) metrics: Vec<SocketAddr>,
}

/// Where the serving process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a session of its own; the command returns when the tree can be read.
    Background,
    /// The command itself serves until the end of the mount.
    Foreground,
}

/// A mount to be ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unmount {
    /// An absolute path.
    pub(super) dir: PathBuf,
    pub(super) how: How,
}

#[derive(Debug, Parser)]
#[command(
    name = "docker-fs",
    version,
    about = help::ABOUT,
    after_help = help::AFTER,
    override_usage = help::USAGE,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    disable_help_flag = true,
    max_term_width = 100
)]
struct Typed {
    #[command(subcommand)]
    command: Option<TypedCommand>,
    #[arg(value_name = "MOUNTPOINT", num_args = 1..=2, required = true, hide = true)]
    paths: Vec<OsString>,
    #[arg(short, long, help = "Stay in the foreground until the mount ends")]
    foreground: bool,
    #[arg(short = 'o', value_name = "OPTION[,OPTION…]", help = help::OPTION, action = ArgAction::Append)]
    options: Vec<String>,
    #[arg(
        long,
        value_name = "KIND",
        help = "Take SOURCE for this kind of store instead of finding out: docker, docker-graph (1.9 and older), containerd, containers-storage (podman)"
    )]
    kind: Option<String>,
    #[arg(short, long, action = ArgAction::Count, help = "Say more; -vv for requests that fail, absent names aside, -vvv for all")]
    verbose: u8,
    #[arg(short, long, conflicts_with = "verbose", help = "Say errors only")]
    quiet: bool,
    #[arg(long, value_name = "FILE", help = "Append messages to FILE; in the background they are lost otherwise")]
    log_file: Option<OsString>,
    #[arg(long, value_name = "HOST:PORT", help = "Tell Prometheus the figures of this mount, on a loopback address")]
    metrics: Option<String>,
    #[arg(short, long, action = ArgAction::HelpShort, global = true, help = "Print help: -h the short one, --help all")]
    help: Option<bool>,
    /// mount(8)'s "do not write mtab"; nothing does any more.
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// mount(8)'s "tolerate sloppy options".
    #[arg(short = 's', hide = true)]
    sloppy: bool,
}

#[derive(Debug, Subcommand)]
enum TypedCommand {
    #[command(about = help::UNMOUNT, after_help = help::UNMOUNT_MORE, visible_alias = "umount")]
    Unmount {
        #[arg(short, long, help = "Detach it at once, though it is in use; what is open stays readable for a while")]
        lazy: bool,
        #[arg(value_name = "DIR", help = "Where it is mounted")]
        dir: OsString,
    },
}

/// Reads the arguments, the program's own name first.
///
/// # Errors
/// A usage error, in one line.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Failure> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    // As other programs with commands have it. A directory of that name is ./help.
    if let [_, first, ..] = args.as_slice()
        && first == "help"
    {
        args.remove(1);
        args.push("--help".into());
    }
    // clap would spread the options of a long help over two lines each.
    let definition = match args.iter().any(|arg| arg == "--help") {
        true => Typed::command().about(help::LONG_ABOUT).after_help(help::LONG_AFTER),
        false => Typed::command(),
    };
    let parsed = definition.try_get_matches_from(args);
    let typed = match parsed.and_then(|found| Typed::from_arg_matches(&found)) {
        Ok(typed) => typed,
        Err(error) => return not_parsed(&error),
    };
    match typed.command {
        Some(TypedCommand::Unmount { lazy, dir }) => {
            Ok(Command::Unmount(Unmount { dir: absolute(dir)?, how: if lazy { How::Lazy } else { How::Plain } }))
        }
        None => mount(typed).map(|mount| Command::Mount(Box::new(mount))),
    }
}

fn mount(typed: Typed) -> Result<Mount, Failure> {
    let mut options = Options::default();
    for list in &typed.options {
        options.add(list).map_err(Failure::usage)?;
    }
    options.kind = typed.kind.or(options.kind);
    if let Some(kind) = &options.kind
        && !store::kinds().any(|known| known == kind)
    {
        let known: Vec<&str> = store::kinds().collect();
        return Err(Failure::usage(format!("unknown kind of store {kind:?}; known: {}", known.join(", "))));
    }
    options.log_file = typed.log_file.map(PathBuf::from).or(options.log_file).map(absolute).transpose()?;
    let metrics = typed
        .metrics
        .as_deref()
        .or(options.metrics.as_deref())
        .map(metrics::addresses)
        .transpose()
        .map_err(Failure::usage)?;
    if let Some(first) = typed.paths.first() {
        refuse_misspelt(first)?;
    }
    let mut paths = typed.paths.iter().map(absolute);
    let (source, mount_point) = match (paths.next().transpose()?, paths.next().transpose()?) {
        (Some(source), Some(mount_point)) => (Some(source), mount_point),
        (Some(mount_point), None) => (None, mount_point),
        (None, _) => return Err(Failure::usage("the mount point is missing")),
    };
    Ok(Mount {
        source,
        mount_point,
        options,
        place: if typed.foreground { Place::Foreground } else { Place::Background },
        level: match (typed.quiet, typed.verbose) {
            (true, _) => LevelFilter::Error,
            (false, 0) => LevelFilter::Warn,
            (false, 1) => LevelFilter::Info,
            (false, 2) => LevelFilter::Debug,
            (false, _) => LevelFilter::Trace,
        },
        metrics: metrics.unwrap_or_default(),
    })
}

/// Refuses what is near a command and names nothing that is there.
fn refuse_misspelt(word: &OsStr) -> Result<(), Failure> {
    /// Edits by which a word may differ, a swap of neighbours being one.
    const NEAR: usize = 2;
    let text = word.to_string_lossy().to_lowercase();
    let is_near = |command| strsim::osa_distance(&text, command) <= NEAR;
    // "mount" is as near, and the opposite.
    let is_meant = text.starts_with('u') && ["unmount", "umount"].into_iter().any(is_near);
    match is_meant && Path::new(word).symlink_metadata().is_err() {
        true => Err(Failure::usage(format!("no command and no directory is called {word:?}; did you mean unmount?"))),
        false => Ok(()),
    }
}

fn absolute(path: impl AsRef<Path>) -> Result<PathBuf, Failure> {
    let path = path.as_ref();
    if path.as_os_str().is_empty() {
        return Err(Failure::usage("a path is empty"));
    }
    std::path::absolute(path)
        .map_err(|error| Failure::failed(format!("cannot find the current directory: {}", words(&error))))
}

/// Help and version are clap's "errors" too; the real ones become one line.
fn not_parsed(error: &clap::Error) -> Result<Command, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Command::Print(error.to_string())),
        ErrorKind::MissingRequiredArgument => Err(Failure::usage("the mount point is missing")),
        ErrorKind::TooManyValues => Err(Failure::usage("more than a SOURCE and a MOUNTPOINT")),
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(meant)) => Err(Failure::usage(format!("{line}; '{meant}' is near"))),
                _ => Err(Failure::usage(line)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Command, Failure> {
        parse(["docker-fs"].iter().chain(words).map(OsString::from))
    }

    fn mounts(words: &[&str]) -> Mount {
        match read(words) {
            Ok(Command::Mount(mount)) => *mount,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_holds() {
        Typed::command().debug_assert();
    }

    #[test]
    fn one_path_is_the_mount_point() {
        assert_eq!(
            mounts(&["/m"]),
            Mount {
                source: None,
                mount_point: PathBuf::from("/m"),
                options: Options::default(),
                place: Place::Background,
                level: LevelFilter::Warn,
                metrics: Vec::new(),
            }
        );
        let two = mounts(&["relative", "/m"]);
        assert_eq!(two.source, Some(std::env::current_dir().unwrap().join("relative")));
        assert_eq!(two.mount_point, PathBuf::from("/m"));
    }

    #[test]
    fn options_stand_anywhere() {
        let helper = mounts(&["/s", "/m", "-n", "-s", "-o", "rw,dev,suid", "-v", "-o", "noexec", "-f"]);
        assert!(helper.options.noexec);
        assert_eq!((helper.place, helper.level), (Place::Foreground, LevelFilter::Info));
        assert_eq!(mounts(&["-qf", "-onoexec", "/s", "/m"]).options, helper.options);
        assert_eq!(mounts(&["-vvv", "/m"]).level, LevelFilter::Trace);
    }

    #[test]
    fn an_option_of_its_own_counts_over_o() {
        let both = mounts(&["--log-file", "/a", "/m", "-o", "log_file=/b,kind=docker,metrics=127.0.0.1:1"]);
        assert_eq!(both.metrics, ["127.0.0.1:1".parse().unwrap()]);
        assert_eq!(mounts(&["/m", "--metrics=[::1]:2", "-ometrics=127.0.0.1:1"]).metrics, ["[::1]:2".parse().unwrap()]);
        assert_eq!(both.options.log_file, Some(PathBuf::from("/a")));
        assert_eq!(both.options.kind.as_deref(), Some("docker"));
    }

    #[test]
    fn unmount_is_a_command_in_front_only() {
        let lazy = Command::Unmount(Unmount { dir: PathBuf::from("/m"), how: How::Lazy });
        assert_eq!(read(&["unmount", "-l", "/m"]), Ok(lazy));
        let plain = Command::Unmount(Unmount { dir: PathBuf::from("/m"), how: How::Plain });
        assert_eq!(read(&["umount", "/m"]), Ok(plain));
        assert!(mounts(&["/s", "unmount"]).mount_point.ends_with("unmount"));
    }

    #[test]
    fn help_is_a_command_too() {
        let text = |words: &[&str]| match read(words) {
            Ok(Command::Print(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(&["help"]), text(&["--help"]));
        assert_eq!(text(&["help", "unmount"]), text(&["unmount", "--help"]));
        assert!(mounts(&["./help"]).mount_point.ends_with("help"));
        assert!(mounts(&["mount", "/m"]).source.unwrap().ends_with("mount"), "that is the opposite");
    }

    #[test]
    fn usage_errors_are_one_line() {
        for (words, message) in [
            (&[][..], "the mount point is missing"),
            (&["-f"], "the mount point is missing"),
            (&["/a", "/b", "/c"], "more than a SOURCE and a MOUNTPOINT"),
            (&["--nonsense", "/m"], "unexpected argument '--nonsense' found"),
            (&["--foregroud", "/m"], "unexpected argument '--foregroud' found; '--foreground' is near"),
            (&["/m", "-o"], "a value is required for '-o <OPTION[,OPTION…]>' but none was supplied"),
            (&["/m", "-o", "wrong"], "unknown option -o wrong"),
            (
                &["/m", "--kind", "podman"],
                "unknown kind of store \"podman\"; known: docker, docker-graph, containerd, containers-storage",
            ),
            (&["-q", "-v", "/m"], "the argument '--quiet' cannot be used with '--verbose...'"),
            (&["unmout", "/m"], "no command and no directory is called \"unmout\"; did you mean unmount?"),
            (&["Umuont", "/m"], "no command and no directory is called \"Umuont\"; did you mean unmount?"),
            (&["", "/m"], "a path is empty"),
            (&["/m", "--metrics", "9090"], "--metrics wants HOST:PORT, not \"9090\""),
            (
                &["/m", "--metrics=0.0.0.0:9090"],
                "--metrics 0.0.0.0:9090: 0.0.0.0 is not a loopback address; there is no password, so only this machine \
                 may ask",
            ),
        ] {
            assert_eq!(read(words), Err(Failure::usage(message)), "{words:?}");
        }
    }
}
