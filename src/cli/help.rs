//! The texts of `--help`: what a user learns without a manual.
//!
//! `-h` shows the short ones, `--help` the long ones; clap puts the list of options between them, which is in `args`.

pub(super) const ABOUT: &str = "Mounts every container image of a machine as one read-only tree";

pub(super) const LONG_ABOUT: &str = "\
docker-fs mounts every container image of a machine as one read-only tree, and then
ls, grep, find, tar, rsync and restic just work. It reads the store's own directories:
no Docker daemon is asked, nothing is unpacked, and nothing in the store is written.

The tree:
  by-tag/NAME/          an image by its name, such as by-tag/ubuntu:24.04/
  by-digest/NAME@SUM/   an image by its repository's digest
  by-id/ID/             every image by its ID, those without a name too
  by-chain/ID/          one layer's own changes, by its chain ID
  by-diff/ID/           the same by its diff ID
  by-container/NAME/    a container: its changes, and what it sees
  merged/IMAGE/         all layers of an image, united: what a container would see
  status                what was read, what of it is damaged, how the process that reads it
                        is confined, what the mount does (JSON)

  An image's directory holds config.json, history, layers/N/ (0 is the base),
  layers/N.json, and merged. In layers/N/ a deletion is an empty file .wh.NAME.

  The same image, though only the first is listed: by-tag/ubuntu:latest, by-tag/ubuntu,
  by-tag/docker.io/library/ubuntu, and in by-id the first 4 digits or more of its ID.";

pub(super) const USAGE: &str = "\
docker-fs [SOURCE] MOUNTPOINT [-f] [-o OPTION[,OPTION…]]…
       docker-fs unmount [-l] DIR";

pub(super) const OPTION: &str = "Mount options; --help lists them";

pub(super) const AFTER: &str = "\
SOURCE is the data root of Docker, containerd or podman; without it, the machine's own
is taken. MOUNTPOINT is an empty directory. 'docker-fs --help' says more and has examples.";

pub(super) const LONG_AFTER: &str = "\
SOURCE is the data root of Docker, containerd or podman. Without it, the machine's own is
taken, the first of these that holds images, or else a store: the data-root of daemon.json,
/var/lib/docker, that of Docker's snap, /var/lib/containerd, the graphroot of
/etc/containers/storage.conf, /var/lib/containers/storage; for other users than root before
them those of a rootless Docker or podman. MOUNTPOINT is an empty directory, neither in the store nor around it
(reading would never end); a single argument is always the MOUNTPOINT.

Mount options (-o):
  allow_other         let other users in, with the permissions that the files have
  fsname=NAME         what df and findmnt show as the source; \\, is a comma
  jail=full           the process that reads the store has no more rights than that takes [default]
  jail=none           … has those of whoever mounts: to find out whether the jail is at fault
  kind=KIND           as --kind
  log_file=FILE       as --log-file
  metrics=HOST:PORT   as --metrics
  noexec              let no program be started from the mount
  nonempty            mount over a directory that holds something, which is hidden by it
  opens=once          the kernel opens files without asking: quickest for many small files [default]
  opens=passthrough   … asks, and reads large files by itself where it can
  opens=each          … asks for each opening and reading
  threads=N           how many requests are served at once, 1 to 64
                      [default: 32, fewer where few files may be open]
  uidmap=stored       files belong to who they belong to on the disk [default]
  uidmap=container    … to who containers see as their owners, where a user namespace gives
                      them other numbers. With allow_other, users of this machine then have the
                      permissions of whoever has their number in the containers
  whiteouts=oci       a deletion in a layer is a file .wh.NAME, as in OCI images [default]
  whiteouts=stored    a deletion is what the store has, such as a device 0:0
  xattrs=auto         find out which attributes overlay layers have their marks in [default]
  xattrs=trusted      … trusted.overlay.*: a Docker run by root
  xattrs=user         … user.overlay.*: a rootless Docker
  Of an option that is said twice, the last counts. The mount is always ro, nosuid and nodev.
  What mount(8) adds (rw, dev, noauto, x-…) is accepted and means nothing.

Examples:
  # docker-fs /mnt/images
  # ls /mnt/images/by-tag
  alpine:3.20  nginx:1.27  registry.example:5000

  # grep -rl log4j /mnt/images/merged/
  /mnt/images/merged/shop:2.1/opt/shop/lib/log4j-core-2.14.1.jar

  An investigator, with a disk of another machine:
  # docker-fs /evidence/var/lib/docker /mnt/images
  # find /mnt/images/by-tag/shop:2.1/layers -name '.wh.*'
  /mnt/images/by-tag/shop:2.1/layers/3/etc/.wh.secret.key

  From /etc/fstab:
  /var/lib/docker /mnt/images fuse.docker-fs nofail,x-systemd.requires-mounts-for=/var/lib/docker

  # docker-fs unmount /mnt/images

Exit codes:
  0  done; mounted and readable
  1  failed
  2  wrong usage
  3  no container store found
  4  mounted, but part of the store is damaged; MOUNTPOINT/status says what (with -f, 0)

Environment:
  DOCKER_FS_LOG     which messages are shown, such as 'debug' or 'docker_fs::mount=trace';
                    counts over -v and -q
  NOTIFY_SOCKET     where systemd is told that the mount is ready (Type=notify)
  XDG_CONFIG_HOME, XDG_DATA_HOME, HOME
                    where a rootless Docker's daemon.json, podman's storage.conf and
                    their stores are looked for

--metrics tells Prometheus, at http://HOST:PORT/metrics, the figures that status shows.

Signals, as by 'pkill -USR1 -x docker-fs', which all mounts get, or 'systemctl kill':
  TERM, INT  unmount and end it; a mount in use is detached, and its users have 10 seconds.
             If it cannot be taken away, the exit code is 1
  HUP        read the store again; in the foreground of a terminal, unmount as TERM does
  USR1       log what it has done and what it holds, also with -q";

pub(super) const UNMOUNT: &str = "Ends a mount of docker-fs";

pub(super) const UNMOUNT_MORE: &str = "\
It returns when the mount is gone. One whose process was killed (\"Transport endpoint is not
connected\") is ended too. Anything else than a mount of docker-fs is refused.
Exit codes: 0 done, 1 failed, 2 wrong usage.";
