//! What the keeper and the server say to each other, by a socket that only they have.
//!
//! ```text
//! server   Ready ─────────────────────── Serving ── … ── (end)
//! keeper           mount, the device ──                   waitpid, detach
//! ```
//!
//! Instead of the next word, the server may say what went wrong. A word is a packet of its own: a letter, and what it says.
//! What comes from a server is text for the user, of bounded length and without control characters, and nothing that the
//! keeper acts upon: a server that was taken over can neither steer a terminal nor say how the command is to end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::error::printable;

/// The longest word in bytes, with room for two of the longest paths; the rest of a longer one is lost.
const LONGEST: usize = 10 << 10;
/// What stands for the rest of a text that is too long.
const CUT: char = '…';

/// One end.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// The store was read, and there is nothing left that could be refused; with what the user should know all the same.
    Ready(Option<String>),
    /// The threads that answer are being started, and all others run.
    Serving,
    /// It ends, and why.
    Failed(String),
}

/// Both ends.
///
/// # Errors
/// The system's.
pub(super) fn pair() -> io::Result<(Link, Link)> {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Link(one), Link(other)))
}

impl Link {
    /// Says a word.
    ///
    /// # Errors
    /// Where the other is gone.
    pub(super) fn say(&self, word: &Word) -> io::Result<()> {
        let mut bytes = word.write();
        bytes.truncate(LONGEST);
        self.send(&bytes, &mut SendAncillaryBuffer::default())
    }

    /// Waits for a word; `None` where the other is gone.
    ///
    /// # Errors
    /// The system's, and `InvalidData` for what is no word.
    pub(super) fn hear(&self) -> io::Result<Option<Word>> {
        self.receive(&mut RecvAncillaryBuffer::new(&mut []), RecvFlags::empty())?
            .map(|bytes| Word::parse(&bytes))
            .transpose()
    }

    /// Waits for a word, or the end of the other, for so long; tells whether there is one.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn has_word_within(&self, time: Duration) -> io::Result<bool> {
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&time)) {
            Ok(ready) => Ok(ready > 0),
            // A signal came, which the caller may want to look at.
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A word that was said already.
    pub(super) fn last_word(&self) -> Option<Word> {
        let look = || self.receive(&mut RecvAncillaryBuffer::new(&mut []), RecvFlags::DONTWAIT);
        let bytes = match look() {
            // That the other did not hear all is told once, before what it said.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::CONNRESET) => look(),
            answer => answer,
        };
        Word::parse(&bytes.ok().flatten()?).ok()
    }

    /// Gives the other a descriptor.
    ///
    /// # Errors
    /// Where the other is gone.
    pub(super) fn give(&self, descriptor: impl AsFd) -> io::Result<()> {
        let descriptors = [descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        self.send(b"d", &mut control)
    }

    /// Waits for a descriptor; `None` where the other is gone.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn take(&self) -> io::Result<Option<OwnedFd>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        self.receive(&mut control, RecvFlags::CMSG_CLOEXEC)?;
        Ok(control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        }))
    }

    fn send(&self, bytes: &[u8], control: &mut SendAncillaryBuffer<'_, '_, '_>) -> io::Result<()> {
        retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(bytes)], control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// A packet; `None` at the end.
    fn receive(&self, control: &mut RecvAncillaryBuffer<'_>, flags: RecvFlags) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; LONGEST];
        let filled = retry_on_intr(|| recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], control, flags))?.bytes;
        bytes.truncate(filled);
        Ok((filled > 0).then_some(bytes))
    }
}

impl Word {
    fn write(&self) -> Vec<u8> {
        match self {
            Self::Ready(None) => b"r".to_vec(),
            Self::Ready(Some(trouble)) => [b"t", trouble.as_bytes()].concat(),
            Self::Serving => b"s".to_vec(),
            Self::Failed(why) => [b"f", why.as_bytes()].concat(),
        }
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let word = match bytes {
            b"r" => Some(Self::Ready(None)),
            b"s" => Some(Self::Serving),
            [b't', trouble @ ..] => Some(Self::Ready(Some(text(trouble)))),
            [b'f', why @ ..] => Some(Self::Failed(text(why))),
            _ => None,
        };
        word.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a word that is not known"))
    }
}

/// What a server says, for a terminal. Escaped, it may have become longer.
fn text(bytes: &[u8]) -> String {
    let mut text = printable(String::from_utf8_lossy(bytes).into_owned());
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push(CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn words_and_descriptors_arrive_as_they_were_sent() {
        let (one, other) = pair().unwrap();
        let words = [
            Word::Ready(None),
            Word::Ready(Some("one object \"ä\\b\" is damaged".to_owned())),
            Word::Serving,
            Word::Failed("no more".to_owned()),
        ];
        for word in &words {
            one.say(word).unwrap();
        }
        for word in words {
            assert_eq!(other.hear().unwrap(), Some(word));
        }
        assert_eq!(other.last_word(), None);
        let (mut reader, writer) = io::pipe().unwrap();
        one.give(&writer).unwrap();
        drop(writer);
        File::from(other.take().unwrap().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(one);
        assert_eq!(other.hear().unwrap(), None);
        assert!(other.take().unwrap().is_none());
    }

    #[test]
    fn what_is_no_word_is_told() {
        let (one, other) = pair().unwrap();
        for bytes in [&b"x"[..], b"F", b"rr", b"s\0"] {
            one.send(bytes, &mut SendAncillaryBuffer::default()).unwrap();
            assert_eq!(other.hear().unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
        let long = Word::Ready(Some("x".repeat(2 * LONGEST)));
        one.say(&long).unwrap();
        assert_eq!(other.hear().unwrap(), Some(Word::Ready(Some("x".repeat(LONGEST - 1)))));
    }

    #[test]
    fn a_server_cannot_steer_a_terminal_or_say_how_to_end() {
        let (one, other) = pair().unwrap();
        let hear = |bytes: &[u8]| {
            one.send(bytes, &mut SendAncillaryBuffer::default()).unwrap();
            other.hear().unwrap()
        };
        let failed = |why: &str| Some(Word::Failed(why.to_owned()));
        // No byte of it is an exit code.
        assert_eq!(hear(b"f\0all is well"), failed("\\0all is well"));
        assert_eq!(hear(b"f\x04damaged"), failed("\\u{4}damaged"));
        assert_eq!(hear(b"f\x1b[2J\rgone\n\xff"), failed("\\u{1b}[2J\\rgone\\n\u{fffd}"));
        assert_eq!(hear(b"t\x1b]0;title\x07"), Some(Word::Ready(Some("\\u{1b}]0;title\\u{7}".to_owned()))));
        let Some(Word::Failed(why)) = hear(&[&b"f"[..], &[0x1b; LONGEST - 1]].concat()) else { panic!() };
        assert!(why.len() <= LONGEST + CUT.len_utf8() && why.ends_with(CUT), "{} bytes", why.len());
    }
}
