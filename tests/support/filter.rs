//! Takes system calls away from a thread and from the processes that it starts, as a filter of a service manager does.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// The same on all architectures, as are all numbers from 403 on.
pub const OPENAT2: i64 = 437;
pub const OPEN_TREE: i64 = 428;
pub const GETXATTRAT: i64 = 464;
pub const LISTXATTRAT: i64 = 465;

/// Runs on a thread of its own that answers these calls with an error number. The filter ends with the thread.
pub fn without<T: Send>(calls: &[i64], errno: i32, run: impl FnOnce() -> T + Send) -> T {
    let program = program(calls, errno);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            apply_filter(&program).expect("set a filter of system calls");
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn program(calls: &[i64], errno: i32) -> BpfProgram {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let architecture = std::env::consts::ARCH.try_into().expect("an architecture with filters");
    let denied = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, architecture).expect("make a filter");
    filter.try_into().expect("compile a filter")
}
