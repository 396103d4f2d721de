//! Keeps a layer whose disk does not answer from taking all threads.
//!
//! A thread that asks a disk waits until it answers, and nothing can end that. So only so many threads may ask for one
//! layer at a time; who comes then waits for one of them, but not for long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

/// How many threads may ask for a layer at a time.
pub const ROOM: usize = 24;
/// How long another waits for one of them.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way to one layer's disk.
#[derive(Debug, Default)]
pub struct Gate {
    inside: AtomicUsize,
    /// How many have left.
    left: AtomicUsize,
    /// How many had left when someone lost the patience while none left, and one more; zero where that never was.
    stuck: AtomicUsize,
    /// How many wait.
    waiting: AtomicUsize,
    /// Guards nothing but the order of waiting and waking.
    turn: Mutex<()>,
    has_left: Condvar,
}

/// A thread on its way; it leaves when this is dropped.
#[derive(Debug)]
pub struct Inside<'a>(&'a Gate);

impl Gate {
    /// Goes in, or waits for another to leave.
    ///
    /// # Errors
    /// `ETIMEDOUT` where none left for long, and at once for those that come after until one does.
    pub fn enter(&self) -> Result<Inside<'_>, Errno> {
        self.try_enter(ROOM).map_or_else(|| self.wait(ROOM, PATIENCE), Ok)
    }

    fn try_enter(&self, room: usize) -> Option<Inside<'_>> {
        let more = |inside: usize| (inside < room).then(|| inside.saturating_add(1));
        self.inside.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok().then(|| Inside(self))
    }

    #[cold]
    fn wait(&self, room: usize, patience: Duration) -> Result<Inside<'_>, Errno> {
        let begun = Instant::now();
        let before = self.left.load(Ordering::Acquire);
        let mut turn = self.turn.lock();
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let entered = loop {
            if let Some(inside) = self.try_enter(room) {
                break Ok(inside);
            }
            let left = self.left.load(Ordering::Acquire);
            if self.stuck.load(Ordering::Acquire) == left.wrapping_add(1) {
                break Err(Errno::TIMEDOUT);
            }
            let rest = patience.saturating_sub(begun.elapsed());
            if rest.is_zero() {
                if left == before {
                    self.stuck.store(left.wrapping_add(1), Ordering::Release);
                }
                break Err(Errno::TIMEDOUT);
            }
            self.has_left.wait_for(&mut turn, rest);
        };
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        entered
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::AcqRel);
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            // With the lock, so that nobody who looked just before goes to sleep now.
            let turn = self.0.turn.lock();
            self.0.has_left.notify_one();
            drop(turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn there_is_room_for_so_many() {
        let gate = Gate::default();
        let inside: Vec<_> = (0..ROOM).map(|_| gate.enter().unwrap()).collect();
        assert!(gate.try_enter(ROOM).is_none());
        drop(inside);
        assert_eq!(gate.inside.load(Ordering::Relaxed), 0);
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn who_comes_later_waits_for_another_to_leave() {
        let gate = Gate::default();
        let inside = gate.try_enter(1).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| gate.wait(1, LONG).is_ok());
            while gate.waiting.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            drop(inside);
            assert!(waits.join().unwrap());
        });
    }

    #[test]
    fn once_the_patience_is_lost_nobody_waits_until_one_leaves() {
        let gate = Gate::default();
        let inside = gate.try_enter(1).unwrap();
        let brief = Duration::from_millis(20);
        assert_eq!(gate.wait(1, brief).err(), Some(Errno::TIMEDOUT));
        let begun = Instant::now();
        assert_eq!(gate.wait(1, LONG).err(), Some(Errno::TIMEDOUT));
        assert!(begun.elapsed() < LONG / 2);
        drop(inside);
        assert!(gate.wait(1, LONG).is_ok());
    }
}
