//! tar-split: the names that layers' tars had, which engines keep to write the same tars again.
//!
//! ```text
//! image/<driver>/layerdb/sha256/<chain ID>/tar-split.json.gz    Docker 1.10 and newer
//! graph/<image ID>/tar-data.json.gz                             Docker 1.8 and 1.9
//!
//! {"type":2,"payload":"<base64>","position":0}                  bytes between contents: headers, padding
//! {"type":1,"name":"etc/motd","size":12,"payload":"<CRC>","position":1}
//! {"type":1,"name_raw":"<base64>","payload":null,"position":2}  a name that is not UTF-8
//! ```
//!
//! (`github.com/vbatts/tar-split`, tar/storage.) Of an entry its name is read. A list is read when its layer's own tree is
//! first looked at, one at a time, and the lists of the layers that were looked at last are kept. One that is missing, damaged or
//! over the bounds is damage of the store from then on, until its file is another.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::bufread::MultiGzDecoder;
use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;

use super::reading::stamp_of;
use super::{Catalogue, Damage, Stamp};
use crate::digest::ChainId;
use crate::error::{Error, Result};
use crate::layer::listed::{LIST_MAX_BYTES, NameList, TarNames};
use crate::name::TreePath;
use crate::root::Root;

/// The largest file that is read, in bytes: some 100 for each entry of a tar.
const PACKED_MAX: u64 = 256 << 20;
/// The most that is unpacked of one, in bytes: some 1,000 for each entry.
const UNPACKED_MAX: u64 = 1 << 30;
/// The longest line, in bytes. A segment of bytes is one, with the headers of a file's attributes.
const LINE_MAX: u64 = 16 << 20;
/// The most memory that the lists take which are kept, in bytes.
const KEPT_MAX_BYTES: usize = 2 * LIST_MAX_BYTES;
/// What a compressed file begins with (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// The `type` of an entry, and of bytes.
const ENTRY: u64 = 1;
const SEGMENT: u64 = 2;

/// The lists of a store.
#[derive(Debug)]
pub(super) struct Lists {
    /// Held for single look-ups and changes only.
    state: Mutex<State>,
    /// Held while a list is read, so that no more than one is at a time: reading one takes memory.
    turn: Mutex<()>,
    /// How often what is wrong changed.
    changes: AtomicU64,
}

#[derive(Debug)]
struct State {
    kept: LruCache<ChainId, Arc<TarNames>>,
    /// Of all that are kept.
    bytes: usize,
    /// The most of that.
    max_bytes: usize,
    /// What is wrong with a layer's list, and the state of the file that it is wrong with.
    failed: BTreeMap<ChainId, (Option<Stamp>, Damage)>,
}

/// The list of one layer.
#[derive(Debug)]
pub(super) struct List {
    pub(super) lists: Arc<Lists>,
    pub(super) chain: ChainId,
    pub(super) root: Arc<Root>,
    pub(super) file: TreePath,
    /// Whether the engine wrote one for each layer.
    pub(super) is_due: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u64,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    name_raw: Option<Cow<'a, str>>,
    position: u64,
}

impl Default for Lists {
    fn default() -> Self {
        let state = State { kept: LruCache::unbounded(), bytes: 0, max_bytes: KEPT_MAX_BYTES, failed: BTreeMap::new() };
        Self { state: Mutex::new(state), turn: Mutex::new(()), changes: AtomicU64::new(0) }
    }
}

impl Lists {
    /// What tells when what is wrong becomes another.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp::of_changes(self.changes.load(Ordering::Acquire))
    }

    /// Adds what is wrong to a catalogue's damage, and forgets what is wrong with layers that it does not list.
    pub(super) fn tell(&self, catalogue: &mut Catalogue) {
        let mut state = self.state.lock();
        state.failed.retain(|chain, _| catalogue.layers.contains_key(chain));
        for (chain, (_, damage)) in &state.failed {
            let mut damage = damage.clone();
            let users = catalogue.images.values().filter(|image| image.layers.iter().any(|l| l.chain == *chain));
            damage.images = users.map(|image| image.id).collect();
            catalogue.damage.push(damage);
        }
    }

    fn kept(&self, chain: &ChainId) -> Option<Arc<TarNames>> {
        self.state.lock().kept.get(chain).cloned()
    }

    fn keep(&self, chain: ChainId, names: &Arc<TarNames>) {
        let mut state = self.state.lock();
        if state.failed.remove(&chain).is_some() {
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        state.bytes = state.bytes.saturating_add(names.bytes());
        if let Some(before) = state.kept.put(chain, Arc::clone(names)) {
            state.bytes = state.bytes.saturating_sub(before.bytes());
        }
        while state.bytes > state.max_bytes
            && let Some((_, oldest)) = state.kept.pop_lru()
        {
            state.bytes = state.bytes.saturating_sub(oldest.bytes());
        }
    }

    fn failed_at(&self, chain: &ChainId) -> Option<Option<Stamp>> {
        self.state.lock().failed.get(chain).map(|(stamp, _)| *stamp)
    }

    fn fail(&self, chain: ChainId, stamp: Option<Stamp>, damage: Damage) {
        self.state.lock().failed.insert(chain, (stamp, damage));
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

impl NameList for List {
    fn names(&self) -> Result<Option<Arc<TarNames>>> {
        if let Some(known) = self.lists.kept(&self.chain) {
            return Ok(Some(known));
        }
        if self.is_known_to_fail()? {
            return Ok(None);
        }
        let _turn = self.lists.turn.lock();
        // Another may have read it meanwhile.
        if let Some(known) = self.lists.kept(&self.chain) {
            return Ok(Some(known));
        }
        if self.is_known_to_fail()? {
            return Ok(None);
        }
        let stamp = stamp_of(&self.root, &self.file)?;
        if stamp.is_none() && !self.is_due {
            return Ok(None);
        }
        match read(&self.root, &self.file) {
            Ok(names) => {
                let names = Arc::new(names);
                self.lists.keep(self.chain, &names);
                Ok(Some(names))
            }
            Err(error) => {
                let damage = Damage::from_error(&self.root, &self.file, error)?;
                let why = format!("{}; what the layer changes is told by comparing it with the one below", damage.why);
                self.lists.fail(self.chain, stamp, Damage { why, ..damage });
                Ok(None)
            }
        }
    }
}

impl List {
    /// Whether the file is the one that could not be read before.
    fn is_known_to_fail(&self) -> Result<bool> {
        let Some(before) = self.lists.failed_at(&self.chain) else { return Ok(false) };
        Ok(stamp_of(&self.root, &self.file)? == before)
    }
}

/// Reads a list.
///
/// # Errors
/// [`Error::Damaged`] where it is not of its form, or over the bounds; [`Error::Io`].
fn read(root: &Root, file: &TreePath) -> Result<TarNames> {
    let wrong = |why: String| Error::damaged(root.shown(file), why);
    let doing = || format!("read {}", root.shown(file));
    let meta = root.stat(file)?.ok_or_else(|| wrong("missing".to_owned()))?;
    if meta.size_bytes > PACKED_MAX {
        return Err(wrong(format!("larger than {PACKED_MAX} bytes")));
    }
    let mut lines = unpacked(root.open_file(file)?).map_err(Error::io(doing))?;
    let (mut names, mut line, mut position, mut unpacked_bytes) = (TarNames::default(), Vec::new(), 0_u64, 0_u64);
    loop {
        line.clear();
        let most = LINE_MAX.saturating_add(1);
        let length = match lines.by_ref().take(most).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(length) => u64::try_from(length).unwrap_or(u64::MAX),
            Err(error) if error.raw_os_error().is_some() => return Err(Error::io(doing)(error)),
            Err(error) => return Err(wrong(format!("cannot be unpacked: {error}"))),
        };
        unpacked_bytes = unpacked_bytes.saturating_add(length);
        if length > LINE_MAX || unpacked_bytes > UNPACKED_MAX {
            return Err(wrong(format!("has a line of over {LINE_MAX} bytes, or lines of over {UNPACKED_MAX}")));
        }
        add(&line, position, &mut names).map_err(|why| wrong(format!("line {}: {why}", position.saturating_add(1))))?;
        position = position.saturating_add(1);
    }
    // Every tar has an end, which is a segment.
    if position == 0 { Err(wrong("holds nothing".to_owned())) } else { Ok(names) }
}

fn unpacked(file: File) -> std::io::Result<Box<dyn BufRead>> {
    let mut packed = BufReader::new(file.take(PACKED_MAX));
    if packed.fill_buf()?.starts_with(&GZIP) {
        Ok(Box::new(BufReader::new(MultiGzDecoder::new(packed))))
    } else {
        Ok(Box::new(packed))
    }
}

/// Adds what a line tells, which should be of this position.
///
/// # Errors
/// What is wrong with it.
fn add(line: &[u8], position: u64, names: &mut TarNames) -> std::result::Result<(), String> {
    let read: Line<'_> = serde_json::from_slice(line).map_err(|error| format!("not of its form: {error}"))?;
    if read.position != position {
        return Err(format!("says that it is number {}", read.position));
    }
    match (read.kind, read.name_raw) {
        (SEGMENT, _) => Ok(()),
        (ENTRY, None) => add_name(names, read.name.as_bytes()),
        (ENTRY, Some(raw)) => {
            let name =
                STANDARD.decode(raw.as_bytes()).map_err(|error| format!("a name is not of its form: {error}"))?;
            add_name(names, &name)
        }
        (kind, _) => Err(format!("is of the unknown type {kind}")),
    }
}

fn add_name(names: &mut TarNames, name: &[u8]) -> std::result::Result<(), String> {
    names.add(name).map_err(|why| {
        let shown: String = String::from_utf8_lossy(name).chars().take(80).collect();
        format!("the name {shown:?} {why}")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_used_last_are_kept_within_bounds() {
        let names = |count: usize| {
            let mut names = TarNames::default();
            (0..count).for_each(|number| names.add(format!("{number:04}").as_bytes()).unwrap());
            Arc::new(names)
        };
        let chain = |number: u8| ChainId::from_hex(&format!("{number:064x}")).unwrap();
        let one = names(10).bytes();
        let lists = Lists::default();
        lists.state.lock().max_bytes = 3 * one;
        for number in 0..3 {
            lists.keep(chain(number), &names(10));
        }
        assert!(lists.kept(&chain(0)).is_some());
        lists.keep(chain(3), &names(10));
        let kept = |lists: &Lists| (0..5).map(|number| lists.kept(&chain(number)).is_some()).collect::<Vec<_>>();
        assert_eq!(kept(&lists), [true, false, true, true, false]);
        // One that was read anew counts once, and one that is too large does not stay.
        lists.keep(chain(3), &names(10));
        assert_eq!((kept(&lists), lists.state.lock().bytes), (vec![true, false, true, true, false], 3 * one));
        lists.keep(chain(4), &names(31));
        assert_eq!((kept(&lists), lists.state.lock().bytes), (vec![false; 5], 0));
    }
}
