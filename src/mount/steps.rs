//! How long the threads that follow the store have been waiting in what they do.
//!
//! They wait for the kernel, which waits for whoever reads what it is to forget, and they for a disk, which may never
//! answer. Nothing ends such a wait. So it is said: in the log, once for each, and in the figures.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What takes longer is warned of. Those who look whether something does, look as often.
pub(super) const LONG: Duration = Duration::from_secs(5);

/// What may wait.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) looking: Step,
    pub(super) names: Step,
    pub(super) pages: Step,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            looking: Step::new("looking for changes in the store"),
            names: Step::new("having the kernel forget names that changed"),
            pages: Step::new("having the kernel forget what it read of what may change"),
        }
    }
}

impl Steps {
    /// Warns of what takes long.
    pub(super) fn check(&self) {
        for step in [&self.looking, &self.names, &self.pages] {
            if let Some(waited) = step.overdue(Instant::now()) {
                let seconds = waited.as_secs();
                log::warn!(
                    "{} has taken {seconds} s so far: somebody waits for a disk that does not answer",
                    step.what
                );
            }
        }
    }
}

/// Something that one thread does again and again.
#[derive(Debug)]
pub(super) struct Step {
    what: &'static str,
    /// Held to look and to note; never while it is done.
    begun: Mutex<Option<Begun>>,
}

#[derive(Debug)]
struct Begun {
    when: Instant,
    is_warned_of: bool,
}

impl Step {
    fn new(what: &'static str) -> Self {
        Self { what, begun: Mutex::new(None) }
    }

    /// Does it, which must not panic.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        *self.begun.lock() = Some(Begun { when: Instant::now(), is_warned_of: false });
        let done = work();
        let begun = self.begun.lock().take();
        if let Some(begun) = begun.filter(|begun| begun.is_warned_of) {
            log::info!("{} goes on, after {} s", self.what, begun.when.elapsed().as_secs());
        }
        done
    }

    /// For how long it has been done.
    pub(super) fn waited(&self, now: Instant) -> Duration {
        self.begun.lock().as_ref().map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun.when))
    }

    /// For how long, where that is too long and was not answered before.
    fn overdue(&self, now: Instant) -> Option<Duration> {
        let mut step = self.begun.lock();
        let begun = step.as_mut().filter(|begun| !begun.is_warned_of)?;
        let waited = now.saturating_duration_since(begun.when);
        begun.is_warned_of = waited >= LONG;
        begun.is_warned_of.then_some(waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_told_once_for_each_time() {
        let step = Step::new("a test");
        for _ in 0..2 {
            assert_eq!((step.waited(Instant::now()), step.overdue(Instant::now() + LONG)), (Duration::ZERO, None));
            let before = Instant::now();
            step.run(|| {
                let after = Instant::now();
                assert_eq!(step.overdue(before), None);
                assert!(step.waited(after + LONG) >= LONG);
                assert!(step.overdue(after + LONG).is_some_and(|waited| waited >= LONG));
                assert_eq!(step.overdue(after + LONG * 2), None);
            });
        }
    }
}
