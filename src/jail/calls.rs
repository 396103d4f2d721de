//! seccomp: which system calls may be made.
//!
//! What is not on the list answers `ENOSYS`, as on a kernel that does not have it: libraries know that answer, and a call
//! that was forgotten here is a request that fails and not a mount that dies. Only what nothing in this program ever does
//! ends it: starting a program, looking into another process. The lists are in `sys`, with the numbers.
//!
//! Linux answers calls that are allowed whatever their arguments without running a filter (5.11).

use std::collections::BTreeMap;

use rustix::io::Errno;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Outcome;
use crate::sys::jail::{INTRUDING, Only, SERVING, SERVING_ALSO, SERVING_IF, number};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Denies this thread all system calls that are not on the list.
pub(super) fn restrict() -> Outcome {
    // In this order, as the second one denies more filters. Of two the kernel takes the sterner answer.
    for program in [intruding(), serving()] {
        let program = program.map_err(|error| error.to_string())?;
        seccompiler::apply_filter(&program).map_err(|error| match error {
            seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => super::why(error),
            other => other.to_string(),
        })?;
    }
    Ok(None)
}

fn serving() -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = SERVING.iter().chain(SERVING_ALSO).map(|call| (number(*call), Vec::new())).collect();
    for (call, only) in SERVING_IF {
        rules.insert(number(*call), conditions(*only)?);
    }
    let denied = SeccompAction::Errno(Errno::NOSYS.raw_os_error().unsigned_abs());
    program(rules, denied, SeccompAction::Allow)
}

fn intruding() -> Result<BpfProgram, BackendError> {
    let rules = INTRUDING.iter().map(|call| (number(*call), Vec::new())).collect();
    program(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn program(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, BackendError> {
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, listed, machine)?.try_into()
}

fn conditions(only: Only) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |argument, length, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
    };
    match only {
        Only::OneOf(argument, values) => values
            .iter()
            .map(|value| rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(*value)))
            .collect(),
        Only::With(argument, bits) => {
            Ok(vec![rule(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), bits)?])
        }
        Only::Without(argument, bits) => {
            Ok(vec![rule(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), 0)?])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_make_programs_and_do_not_meet() {
        let listed: Vec<i64> = SERVING.iter().chain(SERVING_ALSO).map(|call| number(*call)).collect();
        let limited = SERVING_IF.iter().map(|(call, _)| number(*call));
        for call in limited.chain(INTRUDING.iter().map(|call| number(*call))) {
            assert!(!listed.contains(&call), "{call} is allowed without a condition too");
        }
        assert!(serving().unwrap().len() > listed.len());
        assert!(intruding().unwrap().len() > INTRUDING.len());
    }
}
