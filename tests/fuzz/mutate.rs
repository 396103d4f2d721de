//! Random changes of bytes that know what bytes mean here: JSON, IDs, numbers, paths.

/// A small generator of pseudo-random numbers (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or_default()
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

/// What stands in such files, and what should not.
const TOKENS: &[&[u8]] = &[
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551616",
    b"9223372036854775807",
    b"\"\"",
    b"{}",
    b"[]",
    b"[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b",",
    b":",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"\\n",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"\xc3",
    b"\xed\xa0\x80",
    b"../../etc",
    b"/etc/passwd",
    b"/",
    b"..",
    b".",
    b"//",
    b"\x1b[31m",
    b"sha256:",
    b"sha512:",
    b"sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    b"@sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd",
    b"-init",
    b"-removing",
    b"\"Repositories\":",
    b"\"rootfs\":",
    b"\"diff_ids\":",
    b"\"history\":",
    b"\"created_by\":",
    b"\"empty_layer\":true",
    b"\"Name\":\"/",
    b"\"Driver\":\"vfs\"",
    b"\"Image\":",
    b"docker.io/library/",
    b"\"id\":\"",
    b"\"layer\":\"",
    b"\"parent\":\"",
    b"\"names\":[",
    b"\"big-data-names\":null",
    b"\"flags\":{\"incomplete\":true}",
    b"\"uidmap\":[{}]",
    b"\"manifests\":[",
    b"\"config\":{",
    b"localhost:5000/",
    b":latest",
    b"overlay2",
    b"y",
    b"x",
];

/// A changed copy of one of these.
pub(crate) fn mutate(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = corpus.get(dice.below(corpus.len())).cloned().unwrap_or_default();
    for _ in 0..1 + dice.below(6) {
        change(&mut bytes, corpus, dice);
    }
    bytes
}

/// One change.
pub(crate) fn change(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    let end = at + dice.below(bytes.len() - at + 1);
    match dice.below(13) {
        0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
        1 if at < bytes.len() => bytes[at] = dice.of(&[0, b' ', b'"', b'/', b'.', b'0', b'9', b'{', b'[', 0x7f, 0xff]),
        2 | 3 => drop(bytes.splice(at..at, dice.of(TOKENS).iter().copied())),
        4 => drop(bytes.splice(at..end, dice.of(TOKENS).iter().copied())),
        5 => drop(bytes.drain(at..end.min(at + 40))),
        6 => {
            let copy = bytes[at..end].to_vec();
            let to = dice.below(bytes.len() + 1);
            drop(bytes.splice(to..to, copy));
        }
        7 => bytes.truncate(at),
        8 => {
            let other = corpus.get(dice.below(corpus.len())).cloned().unwrap_or_default();
            let from = dice.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        9 => replace_value(bytes, dice),
        10 if dice.one_in(20) => {
            let run = vec![dice.of(b"[{\"a/0 \xff"); dice.of(&[100, 300, 5_000, 70_000])];
            drop(bytes.splice(at..at, run));
        }
        11 if dice.one_in(10) => {
            let piece = bytes[at..end.min(at + 200)].to_vec();
            let times = dice.of(&[10, 200, 1_000]);
            drop(bytes.splice(at..at, piece.repeat(times)));
        }
        12 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = byte.to_ascii_uppercase()),
        _ => {}
    }
    bytes.truncate(1 << 20);
}

/// Puts a token in the place of a whole value: what is between quotes, with them.
fn replace_value(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let quotes: Vec<usize> = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'"').map(|(at, _)| at).collect();
    if quotes.len() < 2 {
        return;
    }
    let first = dice.below(quotes.len() - 1);
    drop(bytes.splice(quotes[first]..=quotes[first + 1], dice.of(TOKENS).iter().copied()));
}
