//! The `docker-fs` command: all of it is in [`docker_fs::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    docker_fs::cli::run(std::env::args_os())
}
