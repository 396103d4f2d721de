//! Capabilities: the two that reading a store takes, and no way to others.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::{Outcome, why};

/// To read files whoever owns them; for `trusted.*` attributes, and to have the kernel read files by itself (passthrough).
const KEPT: CapabilitySet = CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::SYS_ADMIN);

/// Gives up all capabilities but those two, as far as this thread has them.
pub(super) fn reduce(gains_none: bool) -> Outcome {
    // Kernels before 4.3 have no such set.
    let _nothing_to_clear = clear_ambient_capability_set();
    // This takes a capability that is given up next.
    let bounded = bound();
    let held = capabilities(None).map_err(why)?;
    let kept = held.permitted & KEPT;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none }).map_err(why)?;
    match bounded {
        Ok(()) => Ok(None),
        // Without new privileges nothing is gained by what could be.
        Err(_) if gains_none => Ok(Some("the bounding set stays as it is, which takes CAP_SETPCAP".to_owned())),
        Err(errno) => Err(format!("the bounding set: {}", why(errno))),
    }
}

/// Takes all others from the bounding set, which limits what a program could give.
fn bound() -> rustix::io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !KEPT.contains(capability) => remove_capability_from_bounding_set(capability)?,
            Ok(_) => {}
            // The last one that the kernel knows was the one before.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
