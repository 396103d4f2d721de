//! What containerd keeps: its databases so far.

pub mod bolt;
